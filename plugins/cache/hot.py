"""Which keys are read from Redis so often that one server should not bear it alone.

Each worker counts its reads with bounded memory and once a second adds its top to the fleet's ranking, a sorted set.
What the ranking says is read more than `threshold` times a second is hot for a while: readers take turns over copies
of it (`Place.shard`), which lie in other slots of a cluster. A copy that is missing is made from the entry itself.

The ranking has digests, from which nobody can tell a URL. What they stand for lies in a hash beside it, for people to
read: host and path, but no query, which may hold a secret.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from heapq import nlargest
from typing import Any, Final, Protocol

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
MAX_SHOWN: Final = 200


class Asked(Protocol):
    """What a request is for."""

    host: str
    target: str


def shown(asked: Asked) -> str:
    """What a request is for, as everybody may see it: host and path, and that there is a query."""
    path, mark, _ = asked.target.partition("?")
    text = f"{asked.host}{path[:MAX_SHOWN]}{'…' if len(path) > MAX_SHOWN else ''}{'?…' if mark else ''}"
    return text.encode("utf-8", "replace").decode()


def names_of(ranking: bytes) -> bytes:
    """The key of what a ranking's digests stand for: below the same prefix, and in the same slot."""
    return b"%b:names:{%b}" % (ranking, ranking)


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

    def __contains__(self, name: str) -> bool:
        return name in self._counts

    def add(self, name: str) -> bool:
        """Count one; whether it was not there before and is now.

        Constant time on average: what is taken away here was added before.
        """
        counts = self._counts
        if name in counts:
            counts[name] += 1
            return False
        if len(counts) < self._capacity:
            counts[name] = 1
            return True
        self._counts = {other: count - 1 for other, count in counts.items() if count > 1}
        return False

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
        self._asked: dict[str, Asked] = {}
        self._until: dict[str, float] = {}
        # Each has turns of its own: two that are read one after the other would share out the copies between them.
        self._turns: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"<HotKeys {len(self._until)} hot>"

    def __contains__(self, name: str) -> bool:
        return name in self._until

    @property
    def any(self) -> bool:
        """Whether any key is hot."""
        return bool(self._until)

    def count(self, name: str, asked: Asked) -> None:
        """One read of this key has gone to Redis, for a request of which `asked` tells what it was for."""
        if self._sketch.add(name):
            if len(self._asked) >= 2 * CAPACITY:
                self._asked = {other: known for other, known in self._asked.items() if other in self._sketch}
            self._asked[name] = asked

    def shard(self, name: str) -> int:
        """Which copy to read next: 0 is the entry itself, and all there is of a key that is not hot."""
        if name not in self._until:
            return 0
        turn = self._turns[name] = (self._turns.get(name, 0) + 1) % self._shards
        return turn

    def shards(self, name: str) -> range:
        """The numbers of the copies to write beside the entry."""
        return range(1, self._shards if name in self._until else 1)

    async def report(self, redis: Redis) -> None:
        """Tell the fleet what was counted since the last time, and learn what is hot.

        Raises:
            RedisError: Redis cannot tell.
        """
        top = self._sketch.take(REPORTED)
        asked, self._asked = self._asked, {}
        if not (top or self._until):
            return
        told = [part for name, count in top for part in (name, count, shown(asked[name]) if name in asked else "")]
        age, ranked = await redis.run(
            RANK, [self._ranking, names_of(self._ranking)], [int(RANKING_SECONDS * 1000), MAX_RANKED, REPORTED, *told]
        )
        self.learn(max(SETTLING_SECONDS, age / 1000), [name.decode() for name in ranked[::2]], map(float, ranked[1::2]))

    def learn(self, seconds: float, names: Iterable[str], counts: Iterable[float]) -> None:
        """Take over what the ranking says after this many seconds."""
        if self._shards < 2:
            return
        now = self._clock()
        self._until = {name: until for name, until in self._until.items() if until > now}
        self._turns = {name: turn for name, turn in self._turns.items() if name in self._until}
        for name, count in zip(names, counts, strict=True):
            if count / seconds >= self._threshold:
                self._until[name] = now + HOT_SECONDS


# -- for people to look at -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ranked:
    """One line of the ranking."""

    digest: str
    url: str
    """Host and path, without the query; empty where nobody has told."""
    reads: int
    """Reads of Redis since the ranking began, of the whole fleet."""
    per_second: float


async def ranking(redis: Any, key: bytes, limit: int) -> list[Ranked]:
    """What the fleet reads most from Redis, the most first. A ranking is counted for 10 s and then begun anew.

    Args:
        redis: a client of redis.asyncio.
        key: of the ranking.
        limit: at most so many.

    Raises:
        redis.exceptions.RedisError: Redis cannot tell.
    """
    pipeline = redis.pipeline(transaction=False)
    pipeline.zrange(key, 0, limit - 1, desc=True, withscores=True)
    pipeline.pttl(key)
    ranked, left = await pipeline.execute()
    if not ranked:
        return []
    urls = await redis.hmget(names_of(key), [name for name, _ in ranked])
    seconds = max(SETTLING_SECONDS, RANKING_SECONDS - max(left, 0) / 1000)
    return [
        Ranked(
            name.decode("ascii", "replace"),
            "" if url is None else url.decode("utf-8", "replace"),
            int(count),
            count / seconds,
        )
        for (name, count), url in zip(ranked, urls, strict=True)
    ]
