"""Redis in one of its topologies, two gateways before it, the API behind them, and clients."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import aiohttp
from pydantic import ValidationError
from redis.exceptions import RedisError

from gateway.config import Config
from tests.chaos.findings import Findings, Marks, find
from tests.chaos.load import PLUGINS, ROUTES, Api, Application, Load
from tests.harness import free_port
from tests.nodes import Node, running_node
from tests.relay import Relay, Relays, running_relay, running_relays
from tests.servers import Cluster, Sentinel, Server

Topology = Literal["single", "sentinel", "cluster"]

NODES = 2
HEALTH_EVERY = 0.1
DECIDED = "gateway_decided_without_redis_total{"


class Unsupported(Exception):
    """The gateway has no such topology (yet); the message says so."""


@dataclass(frozen=True)
class Pace:
    """How long each part takes, in seconds.

    Attributes:
        before: for how long all is well first.
        hold: for how long something that lasts lasts.
        after: for how long is looked at what comes after it.
        redis: keys of the `[redis]` table; the defaults of the rest are what users have.
    """

    before: float = 2.0
    hold: float = 5.0
    after: float = 3.0
    redis: dict[str, Any] = field(default_factory=dict)


@dataclass
class Stage:
    """What a scenario can act on.

    Attributes:
        server, relay: of a single server.
        relays: in front of the servers of a Sentinel group (the Sentinels, too) or of a cluster. The gateways go
            through them, and nobody else.
        more: servers that a scenario has started; they are removed in the end.
    """

    topology: Topology
    pace: Pace
    marks: Marks = field(default_factory=Marks)
    load: Load = None  # type: ignore[assignment]
    nodes: list[Node] = field(default_factory=list)
    server: Server = None  # type: ignore[assignment]
    relay: Relay = None  # type: ignore[assignment]
    relays: Relays = field(default_factory=lambda: Relays(()))
    sentinel: Sentinel = None  # type: ignore[assignment]
    cluster: Cluster = None  # type: ignore[assignment]
    more: list[Server] = field(default_factory=list)

    def broken(self) -> None:
        """It begins now."""
        self.marks.broken = self.marks.repaired = time.monotonic()

    def repaired(self) -> None:
        """It is over now, as far as Redis is concerned."""
        self.marks.repaired = time.monotonic()

    async def hold(self) -> None:
        await asyncio.sleep(self.pace.hold)

    @property
    def servers(self) -> list[Server]:
        group = self.sentinel or self.cluster
        return group.servers if group is not None else [self.server]

    @property
    def ways(self) -> list[Relay]:
        """All relays."""
        return self.relays.all or [self.relay]

    async def gateways(self) -> list[tuple[dict[str, str], Server]]:
        """The connections of the gateways, as CLIENT LIST shows them, with the server each is on."""
        found = []
        for server in self.servers:
            with contextlib.suppress(RedisError, OSError):
                clients = await server.ask("CLIENT LIST")
                found += [(client, server) for client in clients if client["name"].startswith("gateway-")]
        return found

    async def astray(self) -> list[tuple[dict[str, str], Server]]:
        """Those of them that do not come through a relay."""
        known = self._sources()
        found = await self.gateways()
        known |= self._sources()  # some come and go
        return [(client, server) for client, server in found if int(client["addr"].rpartition(":")[2]) not in known]

    def _sources(self) -> set[int]:
        return {source for relay in self.ways for source in relay.sources}


Act = Callable[[Stage], Awaitable[None]]


@contextlib.asynccontextmanager
async def redis_of(stage: Stage) -> AsyncIterator[tuple[str, str]]:
    """Redis, and its URLs for the gateways and for the application."""
    if stage.topology == "sentinel":
        async with Sentinel() as stage.sentinel, _relayed(stage):
            yield stage.relays.renamed(stage.sentinel.url.encode()).decode(), stage.sentinel.url
    elif stage.topology == "cluster":
        async with Cluster() as stage.cluster, _relayed(stage):
            yield stage.relays.renamed(stage.cluster.url.encode()).decode(), stage.cluster.url
    else:
        # What was acknowledged is in the file when the process is killed.
        stage.server = Server(free_port(), "--appendonly", "yes", "--repl-diskless-sync-delay", "0")
        try:
            await asyncio.to_thread(stage.server.start)
            async with running_relay(stage.server.port) as stage.relay:
                yield stage.relay.url, stage.server.url
        finally:
            for server in (stage.server, *stage.more):
                server.remove()


@contextlib.asynccontextmanager
async def _relayed(stage: Stage) -> AsyncIterator[None]:
    async with running_relays(server.port for server in stage.servers) as stage.relays:
        yield


def supported(topology: Topology) -> None:
    """
    Raises:
        Unsupported: the gateway does not take URLs of this kind.
    """
    url = {"single": "redis://h", "sentinel": "redis+sentinel://h/main", "cluster": "redis+cluster://h"}[topology]
    try:
        Config.model_validate({"redis": {"url": url}})
    except ValidationError:
        raise Unsupported(f"the gateway does not take {url.partition(':')[0]}:// yet") from None


async def play(topology: Topology, act: Act, pace: Pace, *, absent_at_start: bool = False) -> Findings:
    """One scenario from the first process to the last; what was found.

    Args:
        absent_at_start: the gateways are started while Redis refuses them.

    Raises:
        Unsupported: the gateway has no such topology.
    """
    supported(topology)
    stage = Stage(topology, pace)
    api = Api()
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gateway-chaos-")))
        url, application_url = await stack.enter_async_context(redis_of(stage))
        stack.push_async_callback(api.stop)
        await api.start()
        if absent_at_start:
            stage.relay.refuse()
        contexts = [
            running_node(_made(folder / f"node{number}"), **tables(url, api.url, pace)) for number in range(NODES)
        ]
        stage.nodes = list(await asyncio.gather(*[stack.enter_async_context(context) for context in contexts]))
        if not all(node.url for node in stage.nodes):
            raise RuntimeError(f"a gateway does not start: {stage.nodes[0].text}")
        application = Application(application_url)
        stack.push_async_callback(application.stop)
        stage.load = await stack.enter_async_context(Load([node.url for node in stage.nodes], application))
        watching = asyncio.create_task(watch(stage))
        await asyncio.sleep(pace.before)
        stage.broken()
        before = [len(node.errors) for node in stage.nodes]
        await act(stage)
        await asyncio.sleep(pace.after)
        if astray := await stage.astray():
            raise RuntimeError(f"gateways are connected past the relays: {astray}")
        lost = await stage.load.finish()
        watching.cancel()
        stage.marks.ended = time.monotonic()
        load, marks = stage.load, stage.marks
        found = find(load.samples, load.revoked, load.changed, marks, lost)
        for node, length in zip(stage.nodes, before, strict=True):
            found.log += node.errors[length:].decode().splitlines()
        found.lag = load.lag
    return found


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def tables(url: str, api_url: str, pace: Pace) -> dict[str, Any]:
    """A gateway's configuration: defaults, wherever nothing else is said."""
    return {
        "redis": {"url": url, **pace.redis},
        "upstreams": {"default": {"url": api_url}},
        "plugins": PLUGINS,
        "routes": ROUTES,
    }


async def watch(stage: Stage) -> None:
    """Notes what the nodes say of themselves."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=1.0)) as http:

        async def one(number: int, admin: str) -> None:
            moment = time.monotonic()
            try:
                async with http.get(f"{admin}/_gateway/health") as answer:
                    ok = (await answer.json())["status"] == "ok"
                async with http.get(f"{admin}/_gateway/metrics") as answer:
                    lines = [line for line in (await answer.text()).splitlines() if line.startswith(DECIDED)]
            except (aiohttp.ClientError, OSError, TimeoutError):
                stage.marks.health.append((moment, number, False))
                return
            stage.marks.health.append((moment, number, ok))
            stage.marks.decided.append((moment, number, sum(float(line.rpartition(" ")[2]) for line in lines)))

        while True:
            await asyncio.gather(*[one(number, node.admin) for number, node in enumerate(stage.nodes)])
            await asyncio.sleep(HEALTH_EVERY)
