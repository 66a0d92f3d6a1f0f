"""All checks of all servers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from gateway.doctor import access, checks
from gateway.doctor.checks import look
from gateway.doctor.findings import Finding, Level
from gateway.doctor.nodes import MAX_NODES, Deployment, Sentinels
from gateway.doctor.readings import Reading, Unread
from gateway.doctor.rights import user_of
from gateway.plugin import Script
from gateway.store.url import Kind

SLOTS: Final = 16384
"""Of a cluster, always."""
ENOUGH_SENTINELS: Final = 3
"""Of fewer, the loss of one leaves no majority."""


@dataclass(frozen=True, slots=True)
class Use:
    """What the gateway is to do with it.

    Args:
        prefix: what the names of our keys begin with.
        timeout: `redis.timeout`, in seconds.
        workers: of one gateway.
        keeps: plugins that refuse without Redis: what they have in it is not to be lost.
        scripts: those of the plugins.
        user: whose rights were looked at; None for those of the one that is connected.
    """

    prefix: str
    timeout: float
    workers: int
    keeps: Sequence[str]
    scripts: Sequence[Script]
    user: str | None = None


def examine(deployment: Deployment, readings: Sequence[Reading], use: Use) -> list[Finding]:
    """All findings, server by server."""
    found = list(whole(deployment))
    for reading in readings:
        found += [
            Finding(one.check, one.level, one.found, one.hint, reading.node.address)
            for one in server(reading, deployment.kind, use)
        ]
    return found


def whole(deployment: Deployment) -> Iterator[Finding]:
    """What is about all servers together."""
    if deployment.kind == "cluster":
        yield coverage(deployment.slots)
    if deployment.sentinels is not None:
        yield sentinels(deployment.sentinels)
    if deployment.more:
        yield Finding("servers", Level.UNKNOWN, f"{deployment.more} more than the {MAX_NODES} that were looked at")


def server(reading: Reading, kind: Kind, use: Use) -> Iterator[Finding]:
    """What is about one server."""
    if isinstance(reading.hello, Unread):
        level = Level.CRITICAL if reading.node.role == "primary" else Level.WARNING
        yield Finding("version", level, reading.hello.why, "start it, or see why it cannot be reached")
        return
    way = access.way_of(reading.node.client)
    info, prefix, timeout = reading.info, use.prefix, use.timeout
    user = use.user or user_of(reading.node.client)
    yield checks.version(reading.hello)
    yield checks.role(reading.hello, kind)
    yield look("rights", reading.lacking, lambda lacking: access.user_rights(lacking, user))
    yield access.password(way)
    yield access.tls(way)
    yield look("persistence", info, lambda told: checks.persistence(told, reading.save, use.keeps))
    yield look("maxmemory", info, checks.memory)
    yield look("eviction", info, lambda told: checks.eviction(told, use.keeps))
    yield look("fragmentation", info, checks.fragmentation)
    yield look("maxclients", info, lambda told: checks.connections(told, reading.clients, use.workers))
    yield look("replicas", info, lambda told: checks.replicas(told, kind))
    yield look("slow log", reading.slow, lambda slow: checks.slow_log(slow, use.scripts, prefix, timeout))
    yield look("latency", reading.pings, lambda trips: checks.latency(trips, timeout))
    yield look("clock", reading.clock, checks.clock)
    if reading.sample is not None:
        yield look("keys without TTL", reading.sample, checks.endless)
        yield look("biggest keys", reading.sample, checks.biggest)


def coverage(slots: Sequence[tuple[int, int]]) -> Finding:
    """Whether each slot of a cluster has a primary.

    Args:
        slots: ranges that are served, in any order; ends included.
    """
    missing = []
    next_slot = 0
    for first, last in sorted(slots):
        if first > next_slot:
            missing.append((next_slot, first - 1))
        next_slot = max(next_slot, last + 1)
    if next_slot < SLOTS:
        missing.append((next_slot, SLOTS - 1))
    if not missing:
        return Finding("slots", Level.OK, f"all {SLOTS:,} are served")
    count = sum(last - first + 1 for first, last in missing)
    ranges = ", ".join(f"{first}-{last}" if last > first else str(first) for first, last in missing[:8])
    more = ", ..." if len(missing) > 8 else ""
    hint = f"redis-cli --cluster fix HOST:PORT, or bring back their primary: slots {ranges}{more}"
    return Finding("slots", Level.CRITICAL, f"{count:,} of {SLOTS:,} are served by nobody", hint)


def sentinels(read: Sentinels) -> Finding:
    """Whether enough of them are there to agree on a failover."""
    found = f"{read.watching}, of which {read.quorum} must agree"
    if read.watching < max(read.quorum, read.watching // 2 + 1):
        return Finding("sentinels", Level.CRITICAL, found, "there is no failover: start more, or lower the quorum")
    if read.watching < ENOUGH_SENTINELS:
        return Finding("sentinels", Level.WARNING, found, "run three, on three machines: with fewer none may be lost")
    return Finding("sentinels", Level.OK, found)
