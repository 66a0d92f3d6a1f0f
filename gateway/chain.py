"""One route's plugins: ask all, then down one by one, and back.

    request ── ask ─ ask ─ ask ──▶ one write to Redis
            └─ check ─ check ─ plugin( check ─ upstream ) ─ finish ─ finish ──▶ response

Going down needs no coroutine as long as plugins only `check`: `start` and `go_on` go as far as they can, and tell in
`request.waiting` what for they must stop. Who drives (`gateway.connection` with callbacks, `__call__` in a task)
comes back when that is there. A plugin with a `__call__`, the upstream, and a Redis that did not answer need a task:
`rest`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from gateway.observe.metrics import Metrics
from gateway.plugin import LATER, Handler, Later, Plugin, problem
from gateway.request import Request
from gateway.response import Response
from gateway.seldom import Seldom
from gateway.store import Answer, Known, Redis, RedisDown, RedisError, RedisTimeout
from gateway.store.answer import Down, Within
from gateway.store.patience import have_patience

if TYPE_CHECKING:
    from gateway.upstream.asked import Asked

logger = logging.getLogger("gateway.chain")

RETRY_AFTER_SECONDS: Final = "1"
LATE: Final = "chain.late"
DEFAULT_TIMEOUT: Final = 0.25
# What was asked at once ends by the links' clock, for all who wait for it together.
SLACK_SECONDS: Final = 0.01
DECIDED: Final = "gateway_decided_without_redis_total"
DECIDED_TEXT: Final = "Requests that a plugin has decided about without Redis, by what it did."

Check = Callable[[Request, Any], Response | Later | None]


class Chain:
    """A route's folded chain; itself a `Handler`.

    Args:
        plugins: in the configuration's order; the first is the outermost.
        upstream: the last handler.
        redis: what the plugins ask.
        metrics: where it is counted what plugins decide without Redis.
        timeout: seconds that a request waits for Redis at most, all in all.
    """

    def __init__(
        self,
        plugins: Sequence[Plugin],
        upstream: Handler,
        redis: Redis,
        metrics: Metrics | None = None,
        *,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> None:
        self.plugins = tuple(plugins)
        self._upstream = upstream
        self._begin: Callable[[Request], Asked | None] | None = getattr(upstream, "begin", None)
        self._redis = redis
        self._metrics = metrics if metrics is not None else Metrics()
        self._timeout = timeout
        self._complaint = Seldom()
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

    def __repr__(self) -> str:
        return f"<Chain {' -> '.join([plugin.name for plugin in self.plugins] + ['upstream'])}>"

    async def __call__(self, request: Request) -> Response:
        response = self.start(request)
        return response if response is not None else await self.rest(request)

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

    # -- in a task ---------------------------------------------------------------------------------

    async def rest(self, request: Request, base: int = 0) -> Response:
        """The answer, waited for: what is left to do after `start` or `go_on` could not."""
        if not base and self._steps:
            # Until here the request has waited for nothing but Redis, if it has asked at all.
            waited = time.monotonic() - request.started if request.trips else 0.0
            have_patience(self._timeout + SLACK_SECONDS - waited)
        while (waiting := request.waiting) is not None:
            with suppress(RedisError):  # is looked at when it is the plugin's turn, which may be now
                await waiting
            if not waiting.ready:
                self._give_up(request)
            response = self.go_on(request, base)
            if response is not None:
                return response
        position = request.depth
        if position == len(self._steps):
            return self._back(request, base, position, await self._upstream(request))
        return self._back(request, base, position, await self._call(request, position))

    async def _call(self, request: Request, position: int) -> Response:
        """A plugin's `__call__`; what its `on_redis_failure` says where Redis cannot answer it.

        The choice is only possible while `call_next` was not called: afterwards the upstream may have acted.
        """
        _, plugin, check, coroutine = self._steps[position]

        async def call_next(request: Request) -> Response:
            request.depth = position + 1
            response = self.go_on(request, position + 1)
            return response if response is not None else await self.rest(request, position + 1)

        answer = request.answers.get(plugin) if check is not None else None
        error = None if answer is None else answer.error
        if error is None:
            assert coroutine
            try:
                response = await plugin(request, call_next)
            except RedisError as failure:
                if request.depth != position:
                    return self._refuse(plugin)
                error = failure
            else:
                return self._back(request, position, position + 1, response)
        self._complain(plugin, error)
        if plugin.on_redis_failure == "pass":
            self._count(plugin, "pass")
            return await call_next(request)
        if plugin.on_redis_failure == "local":
            try:
                response = await plugin.without_redis(request, call_next)
            except RedisError:
                return self._refuse(plugin)
            self._count(plugin, "local")
            return response
        return self._refuse(plugin)

    def _refuse(self, plugin: Plugin) -> Response:
        self._count(plugin, "refuse")
        return unavailable()

    def _count(self, plugin: Plugin, decision: str) -> None:
        self._metrics.counter(DECIDED, DECIDED_TEXT, plugin=plugin.name, decision=decision).value += 1

    def _complain(self, plugin: Plugin, error: RedisError) -> None:
        """Say that Redis is out of memory or a script broken, now and then. (That it is away, its link tells.)"""
        if not isinstance(error, RedisDown) and self._complaint.due():
            logger.warning("%s: Redis refused its question: %s", plugin.name, error)


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
