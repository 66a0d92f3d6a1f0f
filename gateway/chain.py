"""One route's plugins: ask all, then down one by one, and back.

What can be done without waiting is done by `gateway.steps`. A plugin with a `__call__`, the upstream, and a Redis that
did not answer need a task: `rest`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from gateway.observe.metrics import Metrics
from gateway.plugin import Handler, Plugin, problem
from gateway.request import Request
from gateway.response import Response
from gateway.seldom import Seldom
from gateway.steps import DEFAULT_TIMEOUT, Steps
from gateway.store import Redis, RedisDown, RedisError
from gateway.store.patience import have_patience

logger = logging.getLogger("gateway.chain")

RETRY_AFTER_SECONDS: Final = "1"
# What was asked at once ends by the links' clock, for all who wait for it together.
SLACK_SECONDS: Final = 0.01
DECIDED: Final = "gateway_decided_without_redis_total"
DECIDED_TEXT: Final = "Requests that a plugin has decided about without Redis, by what it did."


class Chain(Steps):
    """A route's folded chain; itself a `Handler`.

    Args:
        metrics: where it is counted what plugins decide without Redis.
        plugins, upstream, redis, timeout: see `Steps`.
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
        super().__init__(plugins, upstream, redis, timeout=timeout)
        self._upstream = upstream
        self._metrics = metrics if metrics is not None else Metrics()
        self._complaint = Seldom()

    def __repr__(self) -> str:
        return f"<Chain {' -> '.join([plugin.name for plugin in self.plugins] + ['upstream'])}>"

    async def __call__(self, request: Request) -> Response:
        response = self.start(request)
        return response if response is not None else await self.rest(request)

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
