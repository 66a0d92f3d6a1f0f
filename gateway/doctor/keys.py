"""Our keys, as far as they are looked at: those without an end, and the biggest ones."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import redis
from redis.exceptions import NoPermissionError

BATCH: Final = 500
SHOWN: Final = 5
"""So many keys are named."""
NO_TTL: Final = -1

Progress = Callable[[int, int], None]
"""Told how many keys were looked at, and of how many."""


@dataclass(slots=True)
class Sample:
    """What was seen of a server's keys.

    Args:
        all_keys: how many keys the server has, ours and others.
        looked_at: how many of them were looked at; more than `all_keys` where keys were seen twice.
        ours: how many of those are ours.
    """

    all_keys: int = 0
    looked_at: int = 0
    ours: int = 0
    without_ttl: int = 0
    named: list[bytes] = field(default_factory=list)
    """The first of those without an end."""
    biggest: list[tuple[int, bytes]] = field(default_factory=list)
    """Bytes and name, the biggest first; empty where sizes may not be asked for."""
    weighed: bool = True
    complete: bool = False

    def add(self, name: bytes, milliseconds: Any, size: Any) -> None:
        """One of our keys.

        Args:
            milliseconds: the reply to PTTL.
            size: the reply to MEMORY USAGE.
        """
        self.ours += 1
        if milliseconds == NO_TTL:
            self.without_ttl += 1
            if len(self.named) < SHOWN:
                self.named.append(name)
        if isinstance(size, NoPermissionError):
            self.weighed = False
        elif isinstance(size, int):  # else it has ended meanwhile
            self.biggest = heapq.nlargest(SHOWN, {*self.biggest, (size, name)})


def ours(name: bytes, prefix: str, templates: Sequence[str]) -> bool:
    """Whether a key is below our prefix, or named like a template with `{id}` in it."""
    if name.startswith(f"{prefix}:".encode()):
        return True
    for template in templates:
        head, _, tail = (half.encode() for half in template.partition("{id}"))
        if name.startswith(head) and name.endswith(tail) and len(name) > len(head) + len(tail):
            return True
    return False


def sample(
    client: redis.Redis,
    prefix: str,
    templates: Sequence[str],
    *,
    max_keys: int,
    seconds: float,
    progress: Progress | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Sample:
    """Look at a server's keys, until `max_keys` of them (and a batch) were seen or `seconds` are over.

    Raises:
        redis.exceptions.RedisError: Redis refuses, or does not answer.
    """
    redis_py: Any = client
    seen = Sample(all_keys=redis_py.dbsize())
    until = clock() + seconds
    cursor = 0
    while True:
        cursor, names = redis_py.scan(cursor, count=BATCH)
        seen.looked_at += len(names)
        mine = [name for name in names if ours(name, prefix, templates)]
        if mine:
            pipeline = redis_py.pipeline(transaction=False)
            for name in mine:
                pipeline.pttl(name)
                pipeline.memory_usage(name)
            replies = pipeline.execute(raise_on_error=False)
            for name, left, size in zip(mine, replies[::2], replies[1::2], strict=True):
                if isinstance(left, redis.RedisError):
                    raise left
                seen.add(name, left, size)
        if progress is not None:
            progress(min(seen.looked_at, seen.all_keys), min(seen.all_keys, max_keys))
        if not cursor:
            seen.complete = True
            return seen
        if seen.looked_at >= max_keys or clock() >= until:
            return seen
