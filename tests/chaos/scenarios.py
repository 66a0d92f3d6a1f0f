"""What happens to Redis."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from redis.exceptions import RedisError

from tests.chaos.findings import Findings
from tests.chaos.stage import Act, Pace, Stage, Topology, play
from tests.harness import eventually, free_port
from tests.relay import Relay
from tests.servers import Server


@dataclass(frozen=True)
class Scenario:
    """A line of the table."""

    topology: Topology
    name: str
    act: Act
    absent_at_start: bool = False

    @property
    def title(self) -> str:
        return f"{self.topology}: {self.name}"

    async def run(self, pace: Pace) -> Findings:
        """
        Raises:
            Unsupported: the gateway has no such topology (yet).
        """
        return await play(self.topology, self.act, pace, absent_at_start=self.absent_at_start)


SCENARIOS: list[Scenario] = []


def scenario(topology: Topology, name: str, **options: Any) -> Callable[[Act], Act]:
    def register(act: Act) -> Act:
        SCENARIOS.append(Scenario(topology, name, act, **options))
        return act

    return register


def named(topology: Topology, name: str) -> Scenario:
    """
    Raises:
        LookupError: there is none.
    """
    for one in SCENARIOS:
        if (one.topology, one.name) == (topology, name):
            return one
    raise LookupError(f"{topology}: {name}")


# -- one server ------------------------------------------------------------------------------------


@scenario("single", "nothing")
async def nothing(stage: Stage) -> None:
    await stage.hold()


@scenario("single", "not there at the start", absent_at_start=True)
async def absent(stage: Stage) -> None:
    await stage.relay.start()
    stage.repaired()


@scenario("single", "killed, back with its data")
async def killed(stage: Stage) -> None:
    stage.server.kill()
    await stage.hold()
    await asyncio.to_thread(stage.server.start)
    stage.repaired()


@scenario("single", "restarted empty")
async def restarted_empty(stage: Stage) -> None:
    stage.server.kill()
    stage.server.arguments = ()  # not from its file
    await asyncio.to_thread(stage.server.start)
    stage.repaired()


@scenario("single", "restarted, loading its data")
async def loading(stage: Stage) -> None:
    """It answers `LOADING` for so long, 20 ms for each key."""
    server = stage.server
    await server.ask("BGREWRITEAOF")
    await eventually(lambda: _rewritten(server), within=10)
    server.kill()
    delay = ("--key-load-delay", "20000", "--loading-process-events-interval-bytes", "1024")
    server.arguments += delay
    await asyncio.to_thread(server.start)
    server.arguments = server.arguments[: -len(delay)]
    await eventually(lambda: _loaded(server), within=20, every=0.05)
    stage.repaired()


async def _rewritten(server: Server) -> bool:
    info = await server.ask("INFO", "persistence")
    return not info["aof_rewrite_in_progress"] and not info["aof_rewrite_scheduled"]


async def _loaded(server: Server) -> bool:
    try:
        return not (await server.ask("INFO", "persistence"))["loading"]
    except (RedisError, OSError):
        return False


@scenario("single", "another server takes over behind the same name")
async def demoted(stage: Stage) -> None:
    """As behind a DNS name: the old one becomes a replica and keeps its connections; new ones reach the new one."""
    old, new = stage.server, Server(free_port(), "--replicaof", f"127.0.0.1 {stage.server.port}")
    stage.more.append(new)
    await asyncio.to_thread(new.start)
    await eventually(new.in_sync, within=10)
    stage.broken()
    await new.ask("REPLICAOF", "NO", "ONE")
    stage.load.application.move(new.url)
    await old.ask("REPLICAOF", "127.0.0.1", new.port)
    stage.relay.to = new.port
    stage.repaired()
    await stage.hold()


@scenario("single", "stopped (SIGSTOP)")
async def stopped(stage: Stage) -> None:
    stage.server.pause()
    await stage.hold()
    stage.server.resume()
    stage.repaired()


@scenario("single", "partition: nothing arrives")
async def partition(stage: Stage) -> None:
    stage.relay.partition()
    await held(stage, stage.relay)


@scenario("single", "half-open: answers do not arrive")
async def half_open(stage: Stage) -> None:
    stage.relay.stall()
    await held(stage, stage.relay)


@scenario("single", "half-open for a second")
async def half_open_shortly(stage: Stage) -> None:
    """Too short for the link to be given up: what was asked meanwhile has been done, and the answers come late."""
    stage.relay.stall()
    await asyncio.sleep(1.0)
    stage.relay.heal()
    stage.repaired()


@scenario("single", "connections cut, in the middle of a reply")
async def cut(stage: Stage) -> None:
    stage.relay.cut_after(100)


@scenario("single", "flapping: refused and back, three times")
async def flapping(stage: Stage) -> None:
    for _ in range(3):
        stage.relay.refuse()
        await asyncio.sleep(stage.pace.hold / 6)
        await stage.relay.start()
        stage.repaired()
        await asyncio.sleep(stage.pace.hold / 6)


async def delayed(stage: Stage, seconds: float) -> None:
    for relay in stage.ways:
        relay.delay = seconds
    await held(stage, *stage.ways)


@scenario("single", "replies 10 ms late")
async def late_10(stage: Stage) -> None:
    await delayed(stage, 0.01)


@scenario("single", "replies 100 ms late")
async def late_100(stage: Stage) -> None:
    await delayed(stage, 0.1)


@scenario("single", "replies 1 s late")
async def late_1000(stage: Stage) -> None:
    await delayed(stage, 1.0)


@scenario("single", "FLUSHALL")
async def flushall(stage: Stage) -> None:
    await stage.server.ask("FLUSHALL")


@scenario("single", "SCRIPT FLUSH")
async def script_flush(stage: Stage) -> None:
    await stage.server.ask("SCRIPT FLUSH")


@scenario("single", "CLIENT KILL of all links")
async def client_kill(stage: Stage) -> None:
    for client, server in await stage.gateways():
        with contextlib.suppress(RedisError):  # it has gone already
            await server.ask("CLIENT KILL", "ID", client["id"])


@scenario("single", "maxmemory reached (noeviction)")
async def maxmemory(stage: Stage) -> None:
    await stage.server.ask("CONFIG SET", "maxmemory", "1mb", "maxmemory-policy", "noeviction")
    await stage.hold()
    await stage.server.ask("CONFIG SET", "maxmemory", "0")
    stage.repaired()


# -- Sentinel --------------------------------------------------------------------------------------


@scenario("sentinel", "nothing")
async def sentinel_nothing(stage: Stage) -> None:
    await stage.hold()


@scenario("sentinel", "primary killed, the old one back as a replica")
async def sentinel_killed(stage: Stage) -> None:
    old = await stage.sentinel.current()
    stage.broken()
    old.kill()
    await stage.sentinel.failed_over(old)
    stage.repaired()
    await asyncio.to_thread(old.start)


@scenario("sentinel", "primary stopped (SIGSTOP), then back as a replica")
async def sentinel_stopped(stage: Stage) -> None:
    old = await stage.sentinel.current()
    stage.broken()
    old.pause()
    await stage.sentinel.failed_over(old)
    stage.repaired()
    await stage.hold()
    old.resume()


@scenario("sentinel", "failover in order (SENTINEL FAILOVER)")
async def sentinel_failover(stage: Stage) -> None:
    old = await stage.sentinel.current()
    stage.broken()
    await stage.sentinel.fail_over()
    await stage.sentinel.failed_over(old)
    stage.repaired()


@scenario("sentinel", "all Sentinels killed")
async def sentinels_killed(stage: Stage) -> None:
    for sentinel in stage.sentinel.sentinels:
        sentinel.kill()
    await stage.hold()


@scenario("sentinel", "primary partitioned from the gateways: nothing arrives")
async def sentinel_partition(stage: Stage) -> None:
    """The Sentinels see nothing of it."""
    primary = await stage.sentinel.current()
    stage.broken()
    relay = stage.relays[primary.port]
    relay.partition()
    await held(stage, relay)


@scenario("sentinel", "replies 100 ms late")
async def sentinel_late(stage: Stage) -> None:
    await delayed(stage, 0.1)


# -- cluster ---------------------------------------------------------------------------------------


@scenario("cluster", "nothing")
async def cluster_nothing(stage: Stage) -> None:
    await stage.hold()


@scenario("cluster", "primary killed, the old one back as a replica")
async def cluster_killed(stage: Stage) -> None:
    old = await stage.cluster.home(await busy_key(stage))
    stage.broken()
    old.kill()
    await stage.cluster.failed_over(old)
    stage.repaired()
    await asyncio.to_thread(old.start)


@scenario("cluster", "primary stopped (SIGSTOP), then back as a replica")
async def cluster_stopped(stage: Stage) -> None:
    old = await stage.cluster.home(await busy_key(stage))
    stage.broken()
    old.pause()
    await stage.cluster.failed_over(old)
    stage.repaired()
    await stage.hold()
    old.resume()


@scenario("cluster", "replica promoted (CLUSTER FAILOVER)")
async def cluster_promoted(stage: Stage) -> None:
    primary = await stage.cluster.home(await busy_key(stage))
    await stage.cluster.promote(await stage.cluster.replica_of(primary))
    stage.repaired()


@scenario("cluster", "slots of busy keys moved, key by key")
async def cluster_resharded(stage: Stage) -> None:
    """Those of the limited client, of some sessions, of the blacklist: each stays half moved for a while."""
    keys = [key for primary in await stage.cluster.primaries() for key in await primary.ask("KEYS", "gateway:*")]
    chosen = [key for kind in (":rate:", ":session:", ":token:", ":cache:") for key in keys if kind in key][:8]
    slots = list(dict.fromkeys([stage.cluster.slot(await busy_key(stage)), *map(stage.cluster.slot, chosen)]))
    for slot in slots:
        migration = await stage.cluster.migrate(slot)
        names = await migration.keys()
        await migration.move(*names[: len(names) // 2 + 1])
        await asyncio.sleep(stage.pace.hold / 10)
        await migration.finish()
    stage.repaired()


@scenario("cluster", "slots of busy keys moved at once (CLUSTER MIGRATESLOTS, Valkey 9)")
async def cluster_moved_at_once(stage: Stage) -> None:
    """That of the limited client, and a thousand behind it."""
    cluster = stage.cluster
    slot = cluster.slot(await busy_key(stage))
    source = await cluster.owner(slot)
    [target, *_] = [primary for primary in await cluster.primaries() if primary is not source]
    last = min(slot + 1000, cluster.last_of_third(slot))
    await source.ask("CLUSTER MIGRATESLOTS", "SLOTSRANGE", slot, last, "NODE", await target.ask("CLUSTER MYID"))

    async def moved() -> bool:
        return await cluster.owner(slot) is target and await cluster.owner(last) is target

    await eventually(moved, within=10, every=0.05)
    stage.repaired()


@scenario("cluster", "one primary partitioned from the gateways: nothing arrives")
async def cluster_partition(stage: Stage) -> None:
    """Its cluster sees nothing of it."""
    relay = await busy_way(stage)
    stage.broken()
    relay.partition()
    await held(stage, relay)


@scenario("cluster", "one primary half-open: answers do not arrive")
async def cluster_half_open(stage: Stage) -> None:
    relay = await busy_way(stage)
    stage.broken()
    relay.stall()
    await held(stage, relay)


@scenario("cluster", "replies 100 ms late")
async def cluster_late(stage: Stage) -> None:
    await delayed(stage, 0.1)


# -- inside ----------------------------------------------------------------------------------------


async def held(stage: Stage, *relays: Relay) -> None:
    """As it is now for as long as it lasts, then well again."""
    await stage.hold()
    for relay in relays:
        relay.heal()
    stage.repaired()


async def busy_key(stage: Stage) -> str:
    """The key of the limit that is asked for some 50 times a second."""
    for primary in await stage.cluster.primaries():
        for key in await primary.ask("KEYS", "gateway:rate:*"):
            if "{limit|" in key:
                return str(key)
    raise LookupError("no limit has been counted")


async def busy_way(stage: Stage) -> Relay:
    """The relay in front of the primary that has it."""
    primary = await stage.cluster.home(await busy_key(stage))
    return stage.relays[primary.port]
