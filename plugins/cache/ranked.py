"""The ranking of hot keys as people see it: with URLs, rates and copies."""

from __future__ import annotations

from dataclasses import asdict

from gateway.console import Context, Document
from plugins.cache.hot import Ranked, ranking
from plugins.cache.keys import Keys, Place
from plugins.cache.plugin import Cache


async def hottest(context: Context, limit: int) -> Document:
    """What the fleet reads most from Redis, the most first. What workers have in their mirrors is read there.

    Raises:
        redis.exceptions.RedisError: Redis cannot tell.
    """
    configs = [plugin.config for plugin in context.plugins(Cache)]
    threshold = min(config.hot_threshold for config in configs)
    shards = max(config.shards for config in configs)
    lines = await ranking(context.redis, Keys(context.prefix, "").hot, limit)
    copies = await _copies(context, lines, shards)
    keys = [
        {"rank": rank, **asdict(line), "hot": shards > 1 and line.per_second >= threshold, "copies": found}
        for rank, (line, found) in enumerate(zip(lines, copies, strict=True), 1)
    ]
    return {"threshold": threshold, "shards": shards, "keys": keys}


async def _copies(context: Context, lines: list[Ranked], shards: int) -> list[int]:
    """Over how many keys each is spread now, its own included."""
    pipeline = context.redis.pipeline(transaction=False)
    for line in lines:
        place = Place(context.prefix, line.digest)
        for number in range(shards):
            pipeline.exists(place.shard(number))
    there = await pipeline.execute() if lines else []
    return [sum(there[start : start + shards]) for start in range(0, len(there), shards)]
