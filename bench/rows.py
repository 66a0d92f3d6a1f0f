"""What is measured, and what each figure is held against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from bench.load import Load


@dataclass(frozen=True)
class Gateway:
    """A gateway to be started: `configs/bench.toml` with these differences."""

    name: str
    mirror: str = "64 MiB"
    workers: int = 1
    routes: int = 0
    """So many routes beside its own."""
    keys: int = 1000
    """So many keys of others are in its Redis."""
    users: int = 100
    """So many users have a session there."""
    redis_delay: float = 0.0
    """Milliseconds that a round trip to Redis takes longer."""


@dataclass(frozen=True)
class Contract:
    """What a row must reach. None: not asked for."""

    ratio: float | None = None
    """At least so many times the baseline's requests a second, or requests a second of CPU."""
    trips: float | None = None
    """At most so many Redis round trips a request."""
    tail: float | None = None
    """p99 below so many times p50."""


@dataclass(frozen=True)
class Work:
    """One row."""

    name: str
    """Without a comma: that is what stands between the words of `--only`."""
    load: Load
    baseline: str | Gateway
    baseline_load: Load | None = None
    """None: the same load."""
    gateway: Gateway = Gateway("gateway")
    contract: Contract = Contract()
    cache: str | None = None
    """`X-Cache` that the gateway's answers must have once warm: what the row says it measures."""
    warm_seconds: int = 1


ON: Final = Gateway("gateway")
OFF: Final = Gateway("mirror off", mirror="0")
TWO: Final = Gateway("2 workers", workers=2)
FAR: Final = Gateway("Redis 1 ms away", redis_delay=1.0)
FAR_OFF: Final = Gateway("mirror off, Redis 1 ms away", mirror="0", redis_delay=1.0)


def constant(connections: int = 64) -> Load:
    return Load("/1k", connections=connections)


def chain(connections: int = 64, users: int = 100) -> Load:
    return Load("/chain/1k", "users", connections, users)


ONE_TRIP: Final = 1.0

WORK: Final = (
    Work("pass-through 1 KB", Load("/pass/1k"), "tutorial", contract=Contract(2.7)),
    Work("pass-through 100 KB", Load("/pass/100k"), "tutorial"),
    Work("stream 10 MB", Load("/pass/10m", connections=8), "tutorial"),
    Work("POST 10 KB", Load("/pass/1k", "post"), "tutorial"),
    Work("memory hit 1 KB", Load("/cached/1k"), "constant", constant(), contract=Contract(1.5), cache="HIT"),
    Work("memory hit 1 KB of fresh bytes", Load("/cached/1k", "fresh"), "constant", Load("/1k", "fresh"), cache="HIT"),
    Work("memory hit 100 KB", Load("/cached/100k"), "constant", Load("/100k"), cache="HIT"),
    Work("Redis hit 1 KB", Load("/cached/1k"), "constant", constant(), OFF, cache="HIT"),
    Work("limit only", Load("/limited/1k"), "tutorial", Load("/pass/1k")),
    Work("chain cold", Load("/chain/1k", "cold"), "usual chain", cache="MISS"),
    Work("chain mirror off", chain(), "constant", constant(), OFF, Contract(0.9, ONE_TRIP), "HIT"),
    Work("chain mirror on", chain(), "constant", constant(), ON, Contract(1.1, ONE_TRIP), "HIT"),
    Work(
        "chain mirror on of fresh bytes",
        Load("/chain/1k", "fresh users"),
        "constant",
        Load("/1k", "fresh"),
        contract=Contract(trips=ONE_TRIP),
        cache="HIT",
    ),
    Work("chain mirror off and the usual way", chain(), "usual chain", gateway=OFF, cache="HIT"),
    Work("chain mirror on and the usual way", chain(), "usual chain", cache="HIT"),
    Work("pass-through at 1 connection", Load("/pass/1k", connections=1), "tutorial"),
    Work("pass-through at 512 connections", Load("/pass/1k", connections=512), "tutorial"),
    Work("memory hit at 1 connection", Load("/cached/1k", connections=1), "constant", constant(1), cache="HIT"),
    Work("memory hit at 512 connections", Load("/cached/1k", connections=512), "constant", constant(512), cache="HIT"),
    Work("chain mirror on at 1 connection", chain(1), "constant", constant(1), cache="HIT"),
    Work("chain mirror on at 512 connections", chain(512), "constant", constant(512), cache="HIT"),
)

GROWTH: Final = (
    Work("pass-through with 2 workers", Load("/pass/1k"), Gateway("1 worker"), gateway=TWO),
    Work("chain mirror on with 2 workers", chain(), Gateway("1 worker"), gateway=TWO, cache="HIT"),
    Work(
        "memory hit with 100 routes",
        Load("/1k", "routes", count=100),
        Gateway("10 routes", routes=10),
        Load("/1k", "routes", count=10),
        Gateway("100 routes", routes=100),
        cache="HIT",
    ),
    Work(
        "memory hit with 1000 routes",
        Load("/1k", "routes", count=1000),
        Gateway("10 routes", routes=10),
        Load("/1k", "routes", count=10),
        Gateway("1000 routes", routes=1000),
        cache="HIT",
    ),
    Work("memory hit with 10 more plugins", Load("/ten/1k"), Gateway("1 more plugin"), Load("/one/1k"), cache="HIT"),
    Work(
        "chain mirror on with 10000 users",
        chain(users=10_000),
        Gateway("100 users"),
        chain(),
        Gateway("10000 users", users=10_000),
        cache="HIT",
        warm_seconds=4,
    ),
    Work(
        "chain mirror off with 10^6 keys",
        chain(),
        Gateway("10^3 keys", mirror="0"),
        gateway=Gateway("10^6 keys", mirror="0", keys=1_000_000),
        cache="HIT",
    ),
)

LATENCY: Final = (
    Work("chain mirror on at 512 connections and 1 ms", chain(512), ON, None, FAR, Contract(tail=3.0), "HIT"),
    Work("chain mirror off at 512 connections and 1 ms", chain(512), OFF, None, FAR_OFF, Contract(tail=3.0)),
    Work("chain mirror on at 1 connection and 1 ms", chain(1), ON, None, FAR, cache="HIT"),
)

SECTIONS: Final = {"Work": WORK, "Growth": GROWTH, "Redis 1 ms away": LATENCY}
