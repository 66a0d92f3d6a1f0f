"""What the cache's tests say often."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from email.utils import formatdate
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tests.harness import Gateway, UpstreamServer


class Clock:
    """The clock of caches and upstream: the real one until it is told to stand, then it moves only when told."""

    def __init__(self) -> None:
        self._now: float | None = None

    def __call__(self) -> float:
        return time.time() if self._now is None else self._now

    def stand(self, *nodes: Gateway) -> None:
        self._now = time.time()
        for node in nodes:
            node.plugins["cache"].clock = self  # type: ignore[attr-defined]

    def pass_by(self, seconds: float) -> None:
        assert self._now is not None
        self._now += seconds


class Got:
    """An answer, read."""

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    def __repr__(self) -> str:
        return f"<{self.status} {self.cache} {self.headers.get('Cache-Status')}>"

    @property
    def cache(self) -> str:
        return self.headers.get("X-Cache", "")

    @property
    def why(self) -> str:
        return self.headers.get("Cache-Status", "")


class Client:
    """Asks nodes."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def __call__(self, node: Gateway, path: str = "/a", method: str = "GET", **options: Any) -> Got:
        # Nodes stand behind one name.
        options["headers"] = {"Host": "api.test", **options.get("headers", {})}
        options.setdefault("allow_redirects", False)
        async with self._session.request(method, node.url + path, **options) as response:
            return Got(response.status, response.headers, await response.read())


@pytest.fixture
def ask(http: aiohttp.ClientSession) -> Client:
    return Client(http)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def say(upstream: UpstreamServer, clock: Clock) -> Callable[..., None]:
    """`say("/a", "max-age=60", delay=0.3)`: what the upstream answers, with a number that counts the fetches."""

    def tell(
        path: str = "/a", control: str | None = "max-age=60", *, delay: float = 0, status: int = 200, **fields: str
    ) -> None:
        async def answer(request: web.Request) -> web.Response:
            number = upstream.count(path)
            if delay:
                await asyncio.sleep(delay)
            headers = {"Date": formatdate(clock(), usegmt=True)}
            headers |= {name.replace("_", "-"): value for name, value in fields.items()}
            if control is not None:
                headers["Cache-Control"] = control
            return web.Response(status=status, text=f"{path} {number}", headers=headers)

        upstream.answer(path, answer)

    return tell
