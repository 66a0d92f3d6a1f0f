"""All that a plugin's author imports.

A plugin is one link of a route's chain. The life of one:

1. its table in the configuration is read into `Config`; a wrong key is an error before anything starts;
2. it is made: `Plugin(config, name)`; nothing is opened yet;
3. `start(worker)` runs once in each worker process, in the chain's order;
4. for each request: every plugin's `ask`, in order and without waiting; then, plugin by plugin, `check` with what
   Redis replied, and `__call__` around all that is further in; on the way back `finish`;
5. `stop()` runs once, in reverse order, after the last request was answered.

Most plugins need no `await` beside their question to Redis: they write `ask`, `check` and `finish`, and a request
whose plugins all do costs neither a task nor a coroutine. `__call__` is for those that need more.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

from pydantic import BaseModel, ConfigDict

from gateway.config import Network, Seconds, Size
from gateway.remembered import Remembered
from gateway.request import BodyBroken, BodyTimeout, BodyTooLarge, Request, users_of
from gateway.response import (
    FAILED,
    HIT,
    MISS,
    PASS,
    REFUSED,
    STALE,
    Response,
    Stream,
    header_line,
    problem,
)
from gateway.seldom import Seldom
from gateway.store import (
    All,
    Answer,
    Call,
    Gets,
    Known,
    Read,
    Redis,
    RedisDown,
    RedisError,
    RedisTimeout,
    Script,
    end_patience,
    share_patience,
)

if TYPE_CHECKING:
    from gateway.worker import Worker as Worker

__all__ = [
    "FAILED",
    "HIT",
    "LATER",
    "MISS",
    "PASS",
    "REFUSED",
    "STALE",
    "All",
    "Answer",
    "BodyBroken",
    "BodyTimeout",
    "BodyTooLarge",
    "Call",
    "Gets",
    "Handler",
    "Known",
    "Later",
    "Network",
    "OnRedisFailure",
    "Plugin",
    "PluginConfig",
    "Read",
    "Redis",
    "RedisDown",
    "RedisError",
    "RedisTimeout",
    "Remembered",
    "Request",
    "Response",
    "Script",
    "Seconds",
    "Seldom",
    "Size",
    "Stream",
    "end_patience",
    "header_line",
    "problem",
    "share_patience",
    "users_of",
]

Handler = Callable[[Request], Awaitable[Response]]

OnRedisFailure = Literal["pass", "refuse", "local"]


class Later(Enum):
    """The type of `LATER`."""

    LATER = "later"


LATER: Final = Later.LATER
"""From `ask`: not now, but when it is my turn. From `check`: what I asked was beside the point; ask me again."""


class PluginConfig(BaseModel):
    """Base of a plugin's `Config`: unknown keys are errors, values do not change once read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Plugin:
    """One link of a chain.

    Subclasses may say:
        Config: a `PluginConfig` with the plugin's own keys, their defaults and descriptions.
        on_redis_failure: what happens to a request when Redis cannot answer it: `pass` (as if this plugin were
            not there), `refuse` (503 with `Retry-After`) or `local` (`without_redis` decides). This is the
            default; the key `on_redis_failure` of the plugin's table overrides it.
    """

    Config: ClassVar[type[PluginConfig]] = PluginConfig
    on_redis_failure: OnRedisFailure = "pass"

    def __init__(self, config: Any, name: str) -> None:
        self.config = config
        self.name = name

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    def ask(self, request: Request, redis: Redis) -> Answer | Later | None:
        """Ask Redis, without waiting; `request.answers[self]` holds what is returned here.

        It runs even if an earlier plugin refuses the request afterwards: it may read or count, not consume.
        It sees what earlier plugins' `ask` could set without waiting. What depends on what they will only learn from
        Redis is asked by `request.guess`, or `LATER`: then `ask` runs again when it is this plugin's turn (which
        costs a round trip of its own).
        """
        return None

    def check(self, request: Request, reply: Any) -> Response | Later | None:
        """Look at what Redis replied: refuse or answer with a response, or let the request pass with None.

        It runs once everything before this plugin has let the request pass. A request that passes goes on to
        `__call__` if the plugin has one.

        Args:
            reply: what the answer from `ask` became; None where `ask` returned None.
        """
        return None

    def finish(self, request: Request, response: Response) -> None:
        """See, and change, the answer to a request that this plugin's `check` has let pass."""

    async def __call__(self, request: Request, call_next: Handler) -> Response:
        """Answer, or pass on with `await call_next(request)` and change what comes back."""
        return await call_next(request)

    async def without_redis(self, request: Request, call_next: Handler) -> Response:
        """What `on_redis_failure = "local"` does: decide from this process's own state.

        Raises:
            RedisDown: that cannot tell either; the request is refused (503).
        """
        raise NotImplementedError

    async def start(self, worker: Worker) -> None:
        """Open what the plugin needs in this worker process. An exception keeps the worker from starting."""

    async def stop(self) -> None:
        """Close it again. Called also after a `start` that failed."""
