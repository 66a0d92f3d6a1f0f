"""Routes of the gateway's own, for requests that no configured one matches: each has one answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gateway.chain import Chain
from gateway.config import RouteTable
from gateway.plugin import Plugin, PluginConfig
from gateway.request import Request
from gateway.response import Response, problem
from gateway.routes import Route
from gateway.store import Redis


class Fixed(Plugin):
    """Answers each request the same way.

    Args:
        make: makes the answer, a new one each time.
    """

    def __init__(self, make: Callable[[], Response]) -> None:
        super().__init__(PluginConfig(), "-")
        self._make = make

    def check(self, request: Request, reply: Any) -> Response:
        return self._make()


class FixedRoutes:
    """The routes of the gateway's own."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self.nowhere = self._route(
            lambda: problem(404, "No such route", "No route of this gateway matches the request's host and path.")
        )
        self.star = self._route(lambda: Response(204))
        """`OPTIONS *` asks about the server itself (RFC 9110, section 9.3.7)."""

    def not_allowed(self, methods: Sequence[str]) -> Route:
        """Where a path is known, but not with this method (RFC 9110, section 15.5.6)."""

        def make() -> Response:
            response = problem(405, "Method not allowed", "This path does not take the method.")
            response.set("Allow", ", ".join(methods))
            return response

        return self._route(make)

    def _route(self, make: Callable[[], Response]) -> Route:
        return Route("-", RouteTable(name="-"), Chain([Fixed(make)], unreachable, self._redis))


async def unreachable(request: Request) -> Response:
    """There is no upstream behind these routes."""
    raise AssertionError(f"{request!r} got past a fixed answer")
