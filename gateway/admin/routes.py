"""How a built-in plugin adds to the admin listener.

Its package has its routes in the module `admin`, under the same name, as it has its commands in `commands`:

    admin = AdminRoutes("cache")

    @admin.get("hot")
    async def hot(context: Context, query: Query) -> Document:
        return {"keys": await context.redis.zcard(f"{context.prefix}:hot")}

That is `GET /_gateway/cache/hot`. What it returns is sent as JSON. A `ValueError` is told the caller as 400, a Redis
that cannot be reached as 503.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from gateway.admin.context import Context

Document = dict[str, Any]
"""A JSON object."""
Query = Mapping[str, str]
"""The parameters of a URL; of a repeated one the first."""
Reading = Callable[[Context, Query], Awaitable[Document]]
Change = Callable[[Context, Document], Awaitable[Document]]

PATH: Final = "/_gateway/{group}/{name}"


class AdminRoutes:
    """One plugin's routes.

    Args:
        group: what stands behind `/_gateway/`; the name of the plugin's commands is a good one.
    """

    def __init__(self, group: str) -> None:
        self.group = group
        self.readings: dict[str, Reading] = {}
        """By path: those that change nothing."""
        self.changes: dict[str, Change] = {}

    def __repr__(self) -> str:
        return f"<AdminRoutes {self.group}>"

    def get(self, name: str) -> Callable[[Reading], Reading]:
        """A route that only tells: GET, with the query's parameters."""

        def add(function: Reading) -> Reading:
            self.readings[PATH.format(group=self.group, name=name)] = function
            return function

        return add

    def post(self, name: str) -> Callable[[Change], Change]:
        """A route that changes something: POST, with a JSON object."""

        def add(function: Change) -> Change:
            self.changes[PATH.format(group=self.group, name=name)] = function
            return function

        return add
