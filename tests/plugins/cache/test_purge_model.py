"""A model of the cache beside two real nodes, for any order of reads, fetches and purges."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import redis.asyncio
import uvloop
from aiohttp import web
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from plugins.cache.purge import Purge
from tests.harness import Gateway, UpstreamServer, Valkey, eventually, running_upstream, start_gateway

WHO = (
    "from gateway.plugin import Plugin\n"
    "class Who(Plugin):\n"
    "    def ask(self, request, redis):\n"
    "        request.speaks_for(request.headers['X-Who'])\n"
)
CONFIG: dict[str, Any] = {"plugins": {"who": {"use": "who:Who"}, "cache": {"ttl": 60, "stale_if_error": 60}}}
TAGS = {0: ("a",), 1: ("a", "b"), 2: ()}
HOST = "api.test"

numbers = st.integers(0, 1)
purges = st.tuples(st.sampled_from(["url", "user", "tag", "route", "all"]), st.integers(0, 2), st.booleans())
reads = st.tuples(st.just("read"), numbers, st.integers(0, 2), numbers, st.sampled_from([False, False, True]))
races = st.tuples(st.just("race"), numbers, st.integers(0, 2), numbers, purges)
operations = st.lists(reads | races | st.tuples(st.just("purge"), purges), min_size=3, max_size=14)


class World:
    """Two nodes, and what is to be seen of them.

    Every answer of the upstream, full or 304, and every purge gets the next number of one count.
    """

    def __init__(
        self,
        upstream: UpstreamServer,
        nodes: list[Gateway],
        client: redis.asyncio.Redis,
        session: aiohttp.ClientSession,
    ) -> None:
        self.upstream = upstream
        self.nodes = nodes
        self.client = client
        self.session = session
        self.count = self.round = 0
        self.begin()

    def begin(self) -> None:
        """What was before is forgotten: new paths, users and tags."""
        self.round += 1
        self.down = False
        self.gate: asyncio.Event | None = None
        self.waiting = 0
        self.confirmed: dict[tuple[int, int], tuple[int, int]] = {}
        """The last answer from the upstream for a page and user: which body, and when it was last asked for."""
        self.purges: list[tuple[int, tuple[str, int, bool]]] = []
        for page in TAGS:
            self.upstream.answer(self.path(page), self.answer)

    def tick(self) -> int:
        self.count += 1
        return self.count

    def path(self, page: int) -> str:
        return f"/{self.round}/{page}"

    async def answer(self, request: web.Request) -> web.Response:
        page, user = int(request.path.rpartition("/")[2]), int(request.headers["X-Who"].rpartition("-")[2])
        if self.down:
            return web.Response(status=503)
        arrived, before = self.tick(), self.confirmed.get((page, user))
        if self.gate is not None:
            self.waiting += 1
            await self.gate.wait()
        tags = ",".join(f"{self.round}-{tag}" for tag in TAGS[page])
        headers = {"Cache-Tag": tags} if tags else {}
        # The second page never changes: what is stored of it can be confirmed.
        wanted = request.headers.get("If-None-Match", "")
        if page == 1 and before is not None and wanted == f'"{before[0]}"':
            self.confirmed[page, user] = (before[0], arrived)
            return web.Response(status=304, headers=headers | {"ETag": wanted})
        self.confirmed[page, user] = (arrived, arrived)
        return web.Response(text=str(arrived), headers=headers | {"ETag": f'"{arrived}"'})

    async def purge(self, kind: str, number: int, soft: bool) -> None:
        what = {
            "url": Purge([(HOST, self.path(number))], soft=soft),
            "user": Purge(users=[f"{self.round}-{number}"], soft=soft),
            "tag": Purge(tags=[f"{self.round}-{'abc'[number]}"], soft=soft),
            "route": Purge(routes=["all"], soft=soft),
            "all": Purge(everything=True, soft=soft),
        }[kind]
        self.purges.append((self.tick(), (kind, number, soft)))
        await what.execute(self.client, "gateway")

    def last_purges(self, page: int, user: int) -> tuple[int, int]:
        """When a page of a user was last purged hard, and when at all."""
        hard = any_at_all = 0
        for when, (kind, number, soft) in self.purges:
            named = {
                "url": number == page,
                "user": number == user,
                "tag": "abc"[number] in TAGS[page],
                "route": True,
                "all": True,
            }[kind]
            if named:
                any_at_all = when
                hard = hard if soft else when
        return hard, any_at_all

    async def heard(self) -> None:
        """Pushes come before the replies to what is asked later; without a mirror, what is believed is so for 30 ms."""
        for node in self.nodes:
            cache: Any = node.plugins["cache"]
            cache._store._believed.clear()
            await asyncio.gather(*[node.worker.redis.ask("EXISTS", "none", bulk=bulk) for bulk in (False, True)])

    async def get(self, node: int, page: int, user: int) -> tuple[int, str, str]:
        headers = {"Host": HOST, "X-Who": f"{self.round}-{user}"}
        async with self.session.get(self.nodes[node].url + self.path(page), headers=headers) as got:
            return got.status, got.headers["X-Cache"], await got.text()

    async def read(self, node: int, page: int, user: int, down: bool) -> None:
        """Ask, and compare with what the model has."""
        await self.heard()
        known, made = self.confirmed.get((page, user), (0, 0))
        hard, purged = self.last_purges(page, user)
        self.down = down
        status, cache, body = await self.get(node, page, user)
        self.down = False
        if made > purged:
            assert (status, cache, body) == (200, "HIT", str(known)), "nothing has named it"
        elif down and made > hard:
            assert (status, cache, body) == (200, "STALE", str(known)), "only softly purged: in place of an error"
        elif down:
            assert status == 503, "there is nothing to serve"
        else:
            assert cache != "HIT"
            assert self.confirmed[page, user][1] > purged, "the upstream was asked after the purge"
            assert body == str(self.confirmed[page, user][0])
            assert int(body) > hard, "what was purged hard is not even revalidated"

    async def race(self, node: int, page: int, user: int, what: tuple[str, int, bool]) -> None:
        """Purge while an answer is fetched, if it is; who asks later does not get that one."""
        await self.heard()
        self.gate, self.waiting = asyncio.Event(), 0
        asked = asyncio.ensure_future(self.get(node, page, user))
        await eventually(lambda: asked.done() or self.waiting, every=0.001)
        await self.purge(*what)
        await self.heard()
        late = [asyncio.ensure_future(self.get(number, page, user)) for number in (0, 1)]
        await self.heard()
        self.gate.set()
        await asked
        hard, purged = self.last_purges(page, user)
        for _, _, body in await asyncio.gather(*late):
            assert int(body) > (hard if page == 1 else purged)
            assert self.confirmed[page, user][1] > purged
        self.gate = None

    async def play(self, steps: list[Any]) -> None:
        self.begin()
        for name, *arguments in steps:
            if name == "purge":
                await self.purge(*arguments[0])
            else:
                await getattr(self, name)(*arguments)
        for node in (0, 1):
            for page in TAGS:
                await self.read(node, page, node, False)


async def begun(folder: Path, valkey: Valkey, upstream: UpstreamServer, mirrors: list[int]) -> World:
    (folder / "who.py").write_text(WHO)
    tables = [{"url": valkey.url, "mirror": {"max_bytes": size}} for size in mirrors]
    config = {**CONFIG, "upstreams": {"default": {"url": upstream.url}}}
    nodes = [await start_gateway({**config, "redis": table}, folder=folder) for table in tables]
    return World(upstream, nodes, redis.asyncio.Redis.from_url(valkey.url), aiohttp.ClientSession())


@pytest.mark.parametrize("mirrors", [[1 << 20, 1 << 20], [0, 1 << 20]], ids=["mirrors", "one without"])
def test_no_answer_outlives_a_purge_that_named_it_and_nothing_else_is_purged(
    shared_valkey: Valkey, tmp_path: Path, mirrors: list[int]
) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        serving = running_upstream()
        upstream = runner.run(_enter(serving))
        world = runner.run(begun(tmp_path, shared_valkey, upstream, mirrors))

        @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
        @given(operations)
        @example([("race", 0, 0, 0, ("tag", 0, True))])
        @example([("race", 0, 0, 0, ("tag", 0, False))])
        @example([("race", 0, 2, 0, ("url", 2, True))])
        @example([("race", 0, 1, 0, ("url", 1, True))])
        @example([("race", 0, 2, 0, ("all", 0, False))])
        def holds(steps: list[Any]) -> None:
            runner.run(world.play(steps))

        try:
            holds()
        finally:
            runner.run(_end(world, serving))


async def _enter(context: Any) -> UpstreamServer:
    entered: UpstreamServer = await context.__aenter__()
    return entered


async def _end(world: World, serving: Any) -> None:
    for node in world.nodes:
        await node.stop()
    await world.session.close()
    await world.client.aclose()
    await serving.__aexit__(None, None, None)
