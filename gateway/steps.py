"""A chain's way down and back as far as nothing has to be waited for; `gateway.chain` does the rest.

    request ── ask ─ ask ─ ask ──▶ one write to Redis
            └─ check ─ check ─ plugin( check ─ upstream ) ─ finish ─ finish ──▶ response

Going down needs no coroutine as long as plugins only `check`: `start` and `go_on` go as far as they can, and tell in
`request.waiting` what for they must stop. Who drives (`gateway.connection` with callbacks, `Chain.__call__` in a task)
comes back when that is there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from mypy_extensions import mypyc_attr

from gateway.plugin import LATER, Handler, Later, Plugin
from gateway.request import Request
from gateway.response import Response
from gateway.store import Answer, Known, Redis, RedisTimeout
from gateway.store.answer import Down, Within

if TYPE_CHECKING:
    from gateway.upstream.asked import Asked

LATE: Final = "chain.late"
DEFAULT_TIMEOUT: Final = 0.25

Check = Callable[[Request, Any], Response | Later | None]


@mypyc_attr(allow_interpreted_subclasses=True)
class Steps:
    """What a route's plugins do without waiting, folded once.

    Args:
        plugins: in the configuration's order; the first is the outermost.
        upstream: the last handler.
        redis: what the plugins ask.
        timeout: seconds that a request waits for Redis at most, all in all.
    """

    def __init__(
        self, plugins: Sequence[Plugin], upstream: Handler, redis: Redis, *, timeout: float = DEFAULT_TIMEOUT
    ) -> None:
        self.plugins = tuple(plugins)
        self._begin: Callable[[Request], Asked | None] | None = getattr(upstream, "begin", None)
        self._redis = redis
        self._timeout = timeout
        self._asks = tuple((plugin, plugin.ask) for plugin in plugins if _has(plugin, "ask"))
        # What each plugin does on the way down: (its number, plugin, its check, whether it has a `__call__`)
        self._steps: tuple[tuple[int, Plugin, Check | None, bool], ...] = tuple(
            (number, plugin, plugin.check if _has(plugin, "check") else None, _has(plugin, "__call__"))
            for number, plugin in enumerate(plugins)
        )
        # By how far down a request is: what is left to do on its way down, and on its way back.
        self._down = tuple(self._steps[depth:] for depth in range(len(plugins) + 1))
        self._up = tuple(
            tuple(
                (number, plugins[number].finish) for number in reversed(range(depth)) if _has(plugins[number], "finish")
            )
            for depth in range(len(plugins) + 1)
        )

    def start(self, request: Request) -> Response | None:
        """Ask all, and go as far as possible without waiting; see `go_on`."""
        redis = self._redis
        asked = redis.asked
        answers = request.answers
        for plugin, ask in self._asks:
            answer = ask(request, redis)
            if answer is not None:
                answers[plugin] = answer
        if redis.asked != asked:
            # Nothing else ran in between: the difference is this request's own questions.
            request.trips = 1
            request.last_tick = redis.tick
            redis.all_asked()
        return self.go_on(request, 0, redis.asked - asked == 1)

    def go_on(self, request: Request, base: int = 0, alone: bool = False) -> Response | None:
        """As far as possible without waiting, from where the request is.

        Args:
            base: the first plugin that has its say about the answer.
            alone: it has asked Redis one thing only.

        Returns:
            The answer. Or None: when `request.waiting` is ready, call this again; where that is None too, `rest`.
        """
        answers = request.answers
        for position, plugin, check, coroutine in self._down[request.depth]:
            if check is not None:
                reply = None
                answer = answers.get(plugin)
                if answer is not None:
                    if answer is LATER:
                        answer = self._ask_now(plugin, request)
                    reply = answer.value
                    if reply is None and not (answer.ready and answer.error is None):
                        request.depth = position
                        request.waiting = None if answer.ready else answer if alone else last_of(answers, answer)
                        if LATE in request.state and request.waiting is not None:
                            request.waiting = self._in_time(request, request.waiting)
                        return None
                response = check(request, reply)
                if response is not None:
                    if response is not LATER:
                        return self._back(request, base, position, response)
                    request.depth = position
                    answers[plugin] = self._ask_now(plugin, request)
                    return self.go_on(request, base)
            if coroutine:
                request.depth = position
                request.waiting = None
                return None
        request.depth = len(self._steps)
        request.waiting = None
        asked = request.asked
        if asked is not None:
            # It was sent from here before. Without a response somebody must take over: `rest`.
            return self._back(request, base, request.depth, asked.value) if asked.value is not None else None
        if not base and self._begin is not None:
            request.waiting = request.asked = self._begin(request)
        return None

    def _ask_now(self, plugin: Plugin, request: Request) -> Answer:
        """The question that could not be asked with all others.

        Raises:
            RuntimeError: this is not the first time.
        """
        late = request.state.setdefault(LATE, set())
        request.early = False
        asked = self._redis.asked
        answer = LATER if plugin in late else plugin.ask(request, self._redis)
        if answer is LATER:
            raise RuntimeError(f"plugin {plugin.name}: it says LATER although it is its turn")
        late.add(plugin)
        if self._redis.asked != asked:
            _ = request.redis  # counts the trip
        answer = request.answers[plugin] = answer if isinstance(answer, Answer) else Known(None)
        return answer

    def _in_time(self, request: Request, waiting: Answer) -> Answer | None:
        """Wait for what was asked late no longer than what is left of the time; None: nothing is, or has just been."""
        left = self._timeout - (time.monotonic() - request.started)
        if left > 0:
            return Within(waiting, left)
        self._give_up(request)
        return None

    def _give_up(self, request: Request) -> None:
        """The plugin whose turn it is has to do without its answer."""
        error = RedisTimeout(f"Redis has not answered within {self._timeout * 1000:.0f} ms")
        request.answers[self.plugins[request.depth]] = Down(error)

    def _back(self, request: Request, base: int, position: int, response: Response) -> Response:
        """The answer's way past the plugins before `position`, the innermost first."""
        for number, finish in self._up[position]:
            if number < base:
                break
            finish(request, response)
        return response


def last_of(answers: dict[Plugin, Answer | Later], first: Answer) -> Answer:
    """Which of a request's pending answers to wait for: the last that is not bulky.

    Those before it came with it, as replies keep their order: the request is woken once and not for each. But a
    decision never waits for a large body behind it.
    """
    if first.bulky:
        return first
    for answer in reversed(answers.values()):
        if answer is not LATER and not answer.ready and not answer.bulky:
            return answer
    return first


def _has(plugin: Plugin, method: str) -> bool:
    """Whether a plugin has a method of its own."""
    return getattr(type(plugin), method) is not getattr(Plugin, method)
