"""What the cache has in Redis, and how well it does: for `gateway cache stats` and the admin listener.

Keys are counted by looking at them (`SCAN`, in batches), as Redis does not count by name. Where there are more keys
than are looked at, the counts are extrapolated from those seen, which `SCAN` gives in no order of ours.
"""

from __future__ import annotations

from asyncio import gather
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Final

from gateway.console import Context, Document, without_garbage
from plugins.cache.entry import ENTRY, INDEX, MAGIC, UNCACHEABLE, VERSION
from plugins.cache.hot import ranking
from plugins.cache.keys import Keys
from plugins.cache.plugin import Cache

BATCH: Final = 1000
MAX_KEYS: Final = 100_000
"""How many keys are looked at unless told otherwise: a second or two."""
HOTTEST: Final = 10
KINDS: Final = {ENTRY: "answers", INDEX: "indexes", UNCACHEABLE: "marks"}
COPIES: Final = "copies"
OUTDATED: Final = "unreadable"
# Outcomes of `gateway_requests_total` that tell what a cache did.
SERVED: Final = ("hit", "stale")
ASKED: Final = (*SERVED, "miss")

Progress = Callable[[int, int], None]
"""Told how many keys were looked at, and of how many."""


class Tally:
    """Keys and bytes by kind."""

    def __init__(self) -> None:
        self.keys: dict[str, int] = {}
        self.bytes: dict[str, int] = {}

    def add(self, kind: str, size: int) -> None:
        self.keys[kind] = self.keys.get(kind, 0) + 1
        self.bytes[kind] = self.bytes.get(kind, 0) + size

    def document(self, factor: float) -> Document:
        """Both, and their sums, times a factor."""
        kinds = {
            kind: {"keys": round(count * factor), "bytes": round(self.bytes[kind] * factor)}
            for kind, count in sorted(self.keys.items(), key=lambda pair: -self.bytes[pair[0]])
        }
        total = {name: sum(kind[name] for kind in kinds.values()) for name in ("keys", "bytes")}
        return {"kinds": kinds, **total}


async def stats(context: Context, *, max_keys: int = MAX_KEYS, progress: Progress | None = None) -> Document:
    """All there is to tell.

    Args:
        max_keys: look at most at so many keys (and a batch).

    Raises:
        redis.exceptions.RedisError: Redis cannot tell.
    """
    told = await count(context, max_keys=max_keys, progress=progress)
    told["server"] = await server(context)
    told["routes"] = by_route(await context.requests(), context)
    told["hottest"] = [asdict(line) for line in await ranking(context.redis, Keys(context.prefix, "").hot, HOTTEST)]
    return told


# -- keys ----------------------------------------------------------------------------------------------


async def count(context: Context, *, max_keys: int, progress: Progress | None = None) -> Document:
    """The cache's keys and what they weigh in Redis, by kind."""
    redis: Any = context.redis
    total = await redis.dbsize(target_nodes="primaries")  # if it is a cluster
    tally = Tally()
    seen, exact = 0, False
    names: list[bytes] = []
    # Not by `scan`: in a cluster each primary has a cursor of its own.
    keys = redis.scan_iter(count=BATCH)
    while not exact and seen < max_keys:
        name = await anext(keys, None)
        exact = name is None
        if name is not None:
            names.append(name)
            seen += 1
        if names and (exact or len(names) == BATCH or seen == max_keys):
            await weigh(redis, context.prefix, names, tally)
            names.clear()
            if progress is not None:
                progress(min(seen, total), min(total, max_keys))
    return {
        "exact": exact,
        "looked_at": seen,
        "all_keys": total,
        **tally.document(1.0 if exact or not seen else max(1.0, total / seen)),
    }


async def weigh(redis: Any, prefix: str, names: list[bytes], tally: Tally) -> None:
    """Count those of some keys that are the cache's."""
    ours = [(name, kind) for name in names if (kind := kind_of(name, prefix))]
    if not ours:
        return
    pipeline = redis.pipeline(transaction=False)
    for name, _ in ours:
        pipeline.memory_usage(name, samples=0)
        pipeline.getrange(name, 0, 3)
    replies = without_garbage(await pipeline.execute(raise_on_error=False))
    for (_, kind), size, start in zip(ours, replies[::2], replies[1::2], strict=True):
        if isinstance(size, int):  # else it has ended meanwhile
            tally.add(kind if kind != "entry" else kind_in(start), size)


def kind_of(name: bytes, prefix: str) -> str:
    """What a key is to the cache; empty for others."""
    start = f"{prefix}:".encode()
    if not name.startswith(start):
        return ""
    group, _, rest = name[len(start) :].partition(b":")
    if group == b"cache":
        return COPIES if b"#" in rest else "entry"
    return {b"lock": "locks", b"gen": "generations"}.get(group, "")


def kind_in(start: Any) -> str:
    """What is stored, from its first bytes."""
    if isinstance(start, bytes) and start[:3] == MAGIC + bytes([VERSION]) and len(start) > 3:
        return KINDS.get(start[3], OUTDATED)
    return OUTDATED


# -- how well it does ----------------------------------------------------------------------------------


async def server(context: Context) -> Document:
    """What Redis says of itself: memory, and keys that it dropped for lack of it or for their age.

    Of a cluster it is what its primaries say, together, and under `primaries` each by its address.
    """
    from redis.asyncio.cluster import RedisCluster

    redis: Any = context.redis
    if not isinstance(redis, RedisCluster):
        return said(await redis.info())
    await redis.initialize()
    nodes = sorted(redis.get_primaries(), key=lambda node: str(node.name))
    primaries = [said(info) for info in await gather(*(redis.info(target_nodes=node) for node in nodes))]
    each = {node.name: one for node, one in zip(nodes, primaries, strict=True)}
    return {**together(primaries), "primaries": each}


def said(info: dict[str, Any]) -> Document:
    """What counts of one server's INFO."""
    return {
        "version": info.get("valkey_version") or info.get("redis_version"),
        "used_memory": info.get("used_memory"),
        "max_memory": info.get("maxmemory") or None,
        "policy": info.get("maxmemory_policy"),
        "evicted": info.get("evicted_keys"),
        "expired": info.get("expired_keys"),
        "read_hits": info.get("keyspace_hits", 0),
        "read_misses": info.get("keyspace_misses", 0),
    }


def together(servers: Sequence[Document]) -> Document:
    """The same of several: the sum of numbers, unless one of them is not known or has no limit; all texts there are."""
    found: Document = {}
    for name in servers[0]:
        values = [one[name] for one in servers]
        if any(isinstance(value, str) for value in values):
            found[name] = ", ".join(sorted({str(value) for value in values}))
        else:
            found[name] = None if None in values else sum(values)
    return found


def by_route(requests: dict[str, dict[str, int]] | None, context: Context) -> list[Document] | None:
    """How requests to the routes with a cache ended, since the gateway on this machine has started."""
    if requests is None:
        return None
    names = {plugin.name for plugin in context.plugins(Cache)}
    told = []
    for route in context.config.routes:
        if names.isdisjoint(route.plugins):
            continue
        outcomes = requests.get(route.label, {})
        asked = sum(outcomes.get(name, 0) for name in ASKED)
        served = sum(outcomes.get(name, 0) for name in SERVED)
        counts = {name: outcomes.get(name, 0) for name in (*ASKED, "pass", "refused", "failed")}
        told.append({"route": route.label, **counts, "hit_ratio": round(served / asked, 4) if asked else None})
    return told
