"""How many workers of the whole fleet are alive, as this one last heard.

Each tells Redis every `BEAT_SECONDS` that it is there, and learns from the reply how many are: one sorted set,
`{prefix}:nodes`, by the time each one's word ends. Who has not been heard for `LIFE_SECONDS` is taken out by the next
who comes. While Redis is away the number stands.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from contextlib import suppress
from random import uniform
from typing import Final

from gateway.store import Redis, RedisError, Script

BEAT_SECONDS: Final = 5.0
LIFE_SECONDS: Final = 15.0
# After Redis was away, or has lost its data, not all have come back with the first beat: the most of these counts.
REMEMBERED: Final = 4
MAX_WORKERS: Final = 10_000

BEAT: Final = Script.beside(__file__, "beat.lua")


class Fleet:
    """The workers of all nodes that share a Redis and a prefix.

    Args:
        name: this worker's; no other has it.
        own: how many workers this node has: known without Redis.
    """

    def __init__(self, redis: Redis, name: str, own: int) -> None:
        self.beat_seconds = BEAT_SECONDS
        self._redis = redis
        self._name = name
        self._own = own
        self._counts: deque[int] = deque(maxlen=REMEMBERED)
        self._key = f"{redis.prefix}:nodes"
        self._beating: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Fleet of {self.workers} workers>"

    @property
    def workers(self) -> int:
        """How many are alive, this one among them; at least those of this node."""
        return max(self._own, *self._counts) if self._counts else self._own

    async def start(self) -> None:
        self._redis.register(BEAT)
        await self._tell()
        self._beating = asyncio.get_running_loop().create_task(self._beat())

    async def stop(self) -> None:
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.gather(self._beating, return_exceptions=True)
            self._redis.run(BEAT, [self._key], [self._name, 0, MAX_WORKERS])

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self.beat_seconds * uniform(0.8, 1.0))  # noqa: S311
            await self._tell()

    async def _tell(self) -> None:
        life = round(LIFE_SECONDS * 1000)
        # While Redis is away its links tell of that, and the number stands.
        with suppress(RedisError):
            self._counts.append(await self._redis.run(BEAT, [self._key], [self._name, life, MAX_WORKERS]))


def worker_name(node: str, number: int) -> str:
    """A worker's name in the fleet."""
    return f"{node}.{number}.{os.getpid()}"
