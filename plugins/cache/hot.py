"""Which keys are read from Redis so often that one server should not bear it alone.

Each worker counts its reads with bounded memory and once a second adds its top to the fleet's ranking, a sorted set.
What the ranking says is read more than `threshold` times a second is hot for a while: readers take turns over copies
of it (`Place.shard`), which lie in other slots of a cluster. A copy that is missing is made from the entry itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from heapq import nlargest
from typing import Final

from gateway.plugin import Redis, Script

RANK: Final = Script.beside(__file__, "hot.lua")

CAPACITY: Final = 512
REPORTED: Final = 64
MAX_RANKED: Final = 1000
# A ranking is counted for this long and then begun anew; in its first second it says little.
RANKING_SECONDS: Final = 10.0
SETTLING_SECONDS: Final = 1.0
# Longer than a ranking: what stays over the threshold stays hot.
HOT_SECONDS: Final = 30.0


class Sketch:
    """Counts the most frequent of many names in bounded memory (Misra and Gries, 1982).

    A count is too low by at most n / (capacity + 1) after n names in all; what is more frequent than that is there.

    Args:
        capacity: how many names are counted at once.
    """

    __slots__ = ("_capacity", "_counts")

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._counts: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"<Sketch {len(self._counts)} of {self._capacity}>"

    def add(self, name: str) -> None:
        """Count one. Constant time on average: what is taken away here was added before."""
        counts = self._counts
        if name in counts:
            counts[name] += 1
        elif len(counts) < self._capacity:
            counts[name] = 1
        else:
            self._counts = {other: count - 1 for other, count in counts.items() if count > 1}

    def take(self, number: int) -> list[tuple[str, int]]:
        """The most frequent ones with their counts; counting begins anew."""
        counts, self._counts = self._counts, {}
        return nlargest(number, counts.items(), key=lambda pair: pair[1])


class HotKeys:
    """What this worker knows of hot keys.

    Args:
        ranking: the key of the fleet's ranking.
        threshold: reads a second of the whole fleet from which on a key is hot.
        shards: over how many keys a hot one is spread; 1 turns it off.
        clock: seconds, of any beginning.
    """

    def __init__(self, ranking: bytes, *, threshold: float, shards: int, clock: Callable[[], float]) -> None:
        self._ranking = ranking
        self._threshold = threshold
        self._shards = shards
        self._clock = clock
        self._sketch = Sketch()
        self._until: dict[str, float] = {}
        self._turn = 0

    def __repr__(self) -> str:
        return f"<HotKeys {len(self._until)} hot>"

    def __contains__(self, name: str) -> bool:
        return name in self._until

    @property
    def any(self) -> bool:
        """Whether any key is hot."""
        return bool(self._until)

    def count(self, name: str) -> None:
        """One read of this key has gone to Redis."""
        self._sketch.add(name)

    def shard(self, name: str) -> int:
        """Which copy to read next: 0 is the entry itself, and all there is of a key that is not hot."""
        if name not in self._until:
            return 0
        self._turn += 1
        return self._turn % self._shards

    def shards(self, name: str) -> range:
        """The numbers of the copies to write beside the entry."""
        return range(1, self._shards if name in self._until else 1)

    async def report(self, redis: Redis) -> None:
        """Tell the fleet what was counted since the last time, and learn what is hot.

        Raises:
            RedisError: Redis cannot tell.
        """
        top = self._sketch.take(REPORTED)
        if self._shards < 2 or not (top or self._until):
            return
        pairs = [part for pair in top for part in pair]
        age, ranked = await redis.run(
            RANK, [self._ranking], [int(RANKING_SECONDS * 1000), MAX_RANKED, REPORTED, *pairs]
        )
        self.learn(max(SETTLING_SECONDS, age / 1000), [name.decode() for name in ranked[::2]], map(float, ranked[1::2]))

    def learn(self, seconds: float, names: Iterable[str], counts: Iterable[float]) -> None:
        """Take over what the ranking says after this many seconds."""
        now = self._clock()
        self._until = {name: until for name, until in self._until.items() if until > now}
        for name, count in zip(names, counts, strict=True):
            if count / seconds >= self._threshold:
                self._until[name] = now + HOT_SECONDS
