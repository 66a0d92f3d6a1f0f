"""One route's plugins: ask all, then call down.

    request ── ask ─ ask ─ ask ──▶ one write to Redis
            └─ plugin( plugin( plugin( upstream ))) ──▶ response

The onion is folded once, at start. Each plugin stands behind a guard that does what the plugin's
`on_redis_failure` says if Redis cannot answer it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

from gateway.plugin import Handler, Plugin, problem
from gateway.request import Request
from gateway.response import Response
from gateway.store import Redis, RedisDown, RedisError

logger = logging.getLogger("gateway.chain")

RETRY_AFTER_SECONDS: Final = "1"


class Chain:
    """A route's folded chain; itself a `Handler`.

    Args:
        plugins: in the configuration's order; the first is the outermost.
        upstream: the last handler.
        redis: what the plugins ask.
    """

    def __init__(self, plugins: Sequence[Plugin], upstream: Handler, redis: Redis) -> None:
        self.plugins = tuple(plugins)
        self._redis = redis
        self._askers = tuple(plugin for plugin in plugins if type(plugin).ask is not Plugin.ask)
        handler = upstream
        if plugins:
            handler = _last(handler, len(plugins))
        for depth, plugin in reversed(list(enumerate(plugins))):
            handler = guarded(plugin, handler, depth)
        self._handler = handler

    def __repr__(self) -> str:
        return f"<Chain {' -> '.join([plugin.name for plugin in self.plugins] + ['upstream'])}>"

    async def __call__(self, request: Request) -> Response:
        redis = self._redis
        asked = redis.asked
        for plugin in self._askers:
            answer = plugin.ask(request, redis)
            if answer is not None:
                request.answers[plugin] = answer
        if redis.asked != asked:
            # Nothing else ran in between: the difference is this request's own questions.
            request.trips = 1
            request.last_tick = redis.tick
        return await self._handler(request)


def _last(upstream: Handler, depth: int) -> Handler:
    async def call_upstream(request: Request) -> Response:
        request.depth = depth
        return await upstream(request)

    return call_upstream


def guarded(plugin: Plugin, call_next: Handler, depth: int) -> Handler:
    """The plugin as a handler, with what happens when Redis cannot answer it.

    The choice is only possible while `call_next` was not called: afterwards the upstream may have acted.
    """

    async def call(request: Request) -> Response:
        request.depth = depth
        try:
            return await plugin(request, call_next)
        except RedisError as error:
            if not isinstance(error, RedisDown):
                # Out of memory, a broken script: as useless to the request as a Redis that is away.
                logger.warning("%s: Redis refused its question: %s", plugin.name, error)
            if request.depth != depth:
                return unavailable()
        choice = plugin.on_redis_failure
        if choice == "pass":
            return await call_next(request)
        if choice == "local":
            return await plugin.without_redis(request, call_next)
        return unavailable()

    return call


def unavailable() -> Response:
    """503: this gateway cannot decide now; not the caller's fault."""
    response = problem(
        503,
        "Service temporarily unavailable",
        "The request could not be checked at the moment. Try again shortly.",
        kind="https://iana.org/assignments/http-problem-types#temporary-reduced-capacity",
    )
    response.set("Retry-After", RETRY_AFTER_SECONDS)
    return response
