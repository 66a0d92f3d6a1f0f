"""Several nodes that act as one: what their clients see when Redis goes away and comes back, when many want what is not
there, and when the one who fetches it is killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import redis.asyncio
from aiohttp import web

from plugins.session import create_session_async
from tests.conftest import StartGateway
from tests.harness import Gateway, UpstreamServer, Valkey, eventually
from tests.nodes import Node, running_node

CONFIG: dict[str, Any] = {
    "plugins": {
        "request_id": {},
        "rate_limit": {"limits": ["100000/minute"]},
        "session": {"sources": ["cookie"]},
        "token_blacklist": {},
        "cache": {"ttl": 1},
    },
    "routes": [
        {"name": "open", "match": {"path": "/open/*"}, "plugins": ["request_id", "rate_limit", "cache"]},
        {
            "name": "private",
            "match": {"path": "/private/*"},
            "plugins": ["request_id", "rate_limit", "token_blacklist", "session", "cache"],
        },
    ],
}


async def log_in(url: str, user: str) -> str:
    client = redis.asyncio.Redis.from_url(url)
    session = await create_session_async(client, user)
    await client.aclose()
    return session


class Load:
    """Steady requests from a few clients at once, with what came of them counted."""

    def __init__(self, http: aiohttp.ClientSession, nodes: list[Gateway], session: str) -> None:
        self.session = session
        self.http = http
        self.nodes = nodes
        self.counts: dict[str, Counter[int]] = {"open": Counter(), "private": Counter()}
        self.slowest = {"open": 0.0, "private": 0.0}
        self._since = 0.0
        self._stop = False
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Load:
        for index in range(8):
            self._tasks.append(asyncio.create_task(self._client(index)))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop = True
        await asyncio.gather(*self._tasks)

    async def _client(self, index: int) -> None:
        number = index
        while not self._stop:
            number += 1
            route = "private" if number % 2 else "open"
            node = self.nodes[number // 2 % len(self.nodes)]
            headers = {"Cookie": f"session={self.session}"}
            started = time.monotonic()
            async with self.http.get(f"{node.url}/{route}/{number % 50}", headers=headers) as answer:
                await answer.read()
            if started < self._since:
                continue
            self.slowest[route] = max(self.slowest[route], time.monotonic() - started)
            self.counts[route][answer.status] += 1

    async def settled(self, requests: int = 100) -> None:
        """So many more answers have come."""
        goal = sum(sum(counter.values()) for counter in self.counts.values()) + requests
        await eventually(lambda: sum(sum(counter.values()) for counter in self.counts.values()) >= goal, within=20)

    def forget(self) -> None:
        """Count what begins from now on."""
        self._since = time.monotonic()
        for counter in self.counts.values():
            counter.clear()
        self.slowest = dict.fromkeys(self.slowest, 0.0)


Fault = Callable[[Valkey], Awaitable[None]]


@pytest.mark.parametrize("fault", ["kill", "pause"])
async def test_redis_goes_and_comes_back_under_load(
    gateway: StartGateway, http: aiohttp.ClientSession, own_valkey: Valkey, fault: str
) -> None:
    """Nothing beyond what `on_redis_failure` says: limits are counted locally, the cache is passed by, and only
    where a session must be checked clients get 503. Nobody waits longer than `redis.timeout` for it."""
    settings = {"url": own_valkey.url, "timeout": 0.25, "max_silence": 0.6, "backoff_max": 0.1}
    nodes = [await gateway({**CONFIG, "redis": settings}) for _ in range(2)]
    async with Load(http, nodes, await log_in(own_valkey.url, "u1")) as load:
        await load.settled()
        assert set(load.counts["open"]) == set(load.counts["private"]) == {200}

        own_valkey.kill() if fault == "kill" else own_valkey.pause()
        await load.settled()
        await eventually(lambda: not any(node.worker.redis.up for node in nodes))
        assert set(load.counts["open"]) == {200}
        assert set(load.counts["private"]) <= {200, 503}
        assert load.slowest["open"] < 2.0
        load.forget()
        await load.settled()
        assert set(load.counts["open"]) == {200}
        assert set(load.counts["private"]) == {503}
        assert max(load.slowest.values()) < 0.5, "while the link is down nobody waits"

        own_valkey.start() if fault == "kill" else own_valkey.resume()
        load.session = await log_in(own_valkey.url, "u1")
        await eventually(lambda: all(node.worker.redis.up for node in nodes))
        await load.settled(20)  # those that were on their way
        load.forget()
        await load.settled()
        assert set(load.counts["open"]) == set(load.counts["private"]) == {200}


async def test_a_limit_holds_over_all_nodes(gateway: StartGateway, http: aiohttp.ClientSession) -> None:
    config = {"plugins": {"rate_limit": {"limits": ["50/minute"]}}}
    nodes = [await gateway(config) for _ in range(2)]

    async def status(number: int) -> int:
        async with http.get(nodes[number % 2].url) as answer:
            return answer.status

    counts = Counter(await asyncio.gather(*(status(number) for number in range(120))))
    assert counts == {200: 50, 429: 70}


async def test_a_warm_chain_needs_one_round_trip(
    gateway: StartGateway, http: aiohttp.ClientSession, redis_url: str, upstream: UpstreamServer
) -> None:
    """Session, blacklist and cache from the mirror; the limit is the one question left."""
    node = await gateway({**CONFIG, "plugins": {**CONFIG["plugins"], "cache": {"ttl": 60}}})
    session = await log_in(redis_url, "u1")
    headers = {"Cookie": f"session={session}", "Authorization": "Bearer abc"}
    for _ in range(3):
        async with http.get(f"{node.url}/private/a", headers=headers) as answer:
            assert answer.status == 200
    main, bulk = node.worker.redis.links
    before = (main.commands, bulk.commands)
    for _ in range(10):
        async with http.get(f"{node.url}/private/a", headers=headers) as answer:
            assert answer.headers["X-Cache"] == "HIT"
    assert (main.commands - before[0], bulk.commands - before[1]) == (10, 0)
    assert upstream.count("/private/a") == 1


# -- one fetch: two gateways with two workers each, as processes -----------------------------------

UPSTREAM_SECONDS = 0.3
LOCK_SECONDS = 1.0

# Tells the upstream which process asks.
WHO = """
import os
from gateway.plugin import Plugin

class Who(Plugin):
    def check(self, request, reply):
        request.set_header("X-Pid", str(os.getpid()))
"""


@pytest.fixture
async def fleet(tmp_path: Path, redis_url: str, upstream: UpstreamServer) -> AsyncIterator[Callable[..., Any]]:
    """Starts the two of them, with these keys for the cache."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(**cache: Any) -> list[Node]:
            nodes = []
            for name in ("one", "two"):
                folder = tmp_path / name
                folder.mkdir()
                (folder / "own_plugin.py").write_text(WHO)
                node = running_node(
                    folder,
                    server={"workers": 2},
                    redis={"url": redis_url},
                    upstreams={"default": {"url": upstream.url}},
                    plugins={"who": {"use": "own_plugin:Who"}, "cache": cache},
                )
                nodes.append(stack.enter_async_context(node))
            return await asyncio.gather(*nodes)

        yield start


class Caller(asyncio.Protocol):
    """One client on one connection. It costs little beside what it measures."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._answered: asyncio.Future[tuple[bytes, bytes]] | None = None
        self._transport: Any = None

    @staticmethod
    async def to(node: Node) -> Caller:
        _, caller = await asyncio.get_running_loop().create_connection(Caller, "127.0.0.1", node.port)
        return caller

    async def ask(self) -> tuple[str, bytes, float]:
        """GET /a: what the cache says in `X-Cache`, the body, and seconds from now to its last byte.

        Raises:
            ConnectionError: the connection was closed before the answer was complete.
        """
        started = time.monotonic()
        self._answered = asyncio.get_running_loop().create_future()
        self._transport.write(b"GET /a HTTP/1.1\r\nHost: api.test\r\n\r\n")
        head, body = await self._answered
        assert head.startswith(b"HTTP/1.1 200 ")
        word = head.partition(b"X-Cache: ")[2].partition(b"\r\n")[0].decode()
        return word, body, time.monotonic() - started

    def close(self) -> None:
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = bytes(self._received).partition(b"\r\n\r\n")
        if end and len(body) == int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]):
            self._received.clear()
            assert self._answered is not None
            self._answered.set_result((head, body))

    def connection_lost(self, error: Exception | None) -> None:
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(ConnectionResetError())


@contextlib.asynccontextmanager
async def callers(nodes: list[Node], count: int) -> AsyncIterator[list[Caller]]:
    """So many connections, spread evenly over the nodes."""
    opened = [await Caller.to(nodes[number % len(nodes)]) for number in range(count)]
    try:
        yield opened
    finally:
        for caller in opened:
            caller.close()


class Fetches:
    """The upstream, and when it was asked by which process."""

    def __init__(self, upstream: UpstreamServer, control: str, seconds: float) -> None:
        self.begun: list[float] = []
        self.pids: list[int] = []
        self.under_way = self.most = 0
        self._control = control
        self._seconds = seconds
        upstream.answer("/a", self)

    async def __call__(self, request: web.Request) -> web.Response:
        self.begun.append(time.monotonic())
        self.pids.append(int(request.headers["X-Pid"]))
        number = len(self.begun)
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await asyncio.sleep(self._seconds)
        finally:
            self.under_way -= 1
        return web.Response(text=f"answer {number}", headers={"Cache-Control": self._control})


async def test_five_hundred_requests_for_one_cold_key_are_one_fetch(
    fleet: Callable[..., Any], upstream: UpstreamServer
) -> None:
    fetches = Fetches(upstream, "max-age=60", UPSTREAM_SECONDS)
    async with callers(await fleet(), 500) as clients:
        got = await asyncio.gather(*[client.ask() for client in clients])
    assert len(fetches.begun) == 1
    assert {body for _, body, _ in got} == {b"answer 1"}
    slowest = max(seconds for _, _, seconds in got)
    print(f"500 at once, upstream {UPSTREAM_SECONDS * 1000:.0f} ms: slowest {slowest * 1000:.0f} ms")
    assert slowest < 2


async def test_a_holder_that_is_killed_costs_one_more_fetch_and_its_locks_life(
    fleet: Callable[..., Any], upstream: UpstreamServer
) -> None:
    fetches = Fetches(upstream, "max-age=60", UPSTREAM_SECONDS)
    async with callers(await fleet(lock_ttl=LOCK_SECONDS), 500) as clients:
        asked = [asyncio.ensure_future(client.ask()) for client in clients]
        await eventually(lambda: fetches.begun)
        await asyncio.sleep(UPSTREAM_SECONDS / 2)
        os.kill(fetches.pids[0], signal.SIGKILL)
        got = await asyncio.gather(*asked, return_exceptions=True)
    answered = [one for one in got if not isinstance(one, BaseException)]
    lost = len(got) - len(answered)
    assert {body for _, body, _ in answered} == {b"answer 2"}
    assert 0 < lost < 500, "the killed worker's clients, and only those"
    assert len(fetches.begun) == 2
    slowest = max(seconds for _, _, seconds in answered)
    print(f"the holder killed, its lock ends within {LOCK_SECONDS:g} s: slowest {slowest * 1000:.0f} ms, {lost} lost")
    assert slowest < UPSTREAM_SECONDS / 2 + LOCK_SECONDS + UPSTREAM_SECONDS + 1


@pytest.mark.parametrize("way", ["early refresh", "stale while revalidate"])
async def test_a_key_that_ends_under_load_makes_nobody_wait(
    fleet: Callable[..., Any], upstream: UpstreamServer, way: str
) -> None:
    early = way == "early refresh"
    fetches = Fetches(upstream, "max-age=2" if early else "max-age=1, stale-while-revalidate=10", 0.1)
    words: Counter[str] = Counter()
    slowest = 0.0

    async def load(client: Caller) -> None:
        nonlocal slowest
        while len(fetches.begun) < 3:
            word, _, seconds = await client.ask()
            words[word] += 1
            slowest = max(slowest, seconds)
            await asyncio.sleep(0.01)

    async with callers(await fleet(early_refresh=1.0 if early else 0.0), 20) as clients:
        await clients[0].ask()
        await asyncio.wait_for(asyncio.gather(*[load(client) for client in clients]), 10)
    print(f"{way}: {dict(words)}, slowest {slowest * 1000:.0f} ms")
    assert set(words) <= {"HIT", "STALE"}, "nobody waited for the upstream"
    assert early is not ("STALE" in words)
    assert fetches.most == 1
    gaps = [after - before for before, after in zip(fetches.begun, fetches.begun[1:], strict=False)]
    # `Date` has whole seconds: an answer may be a second old when it comes.
    assert min(gaps) > (0.5 if early else 0.1), "one refresh for each end"
