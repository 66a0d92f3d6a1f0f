"""What this worker has read from Redis, and Redis has not withdrawn.

theory of operation
A read is sent with `CLIENT CACHING YES` before it, so Redis remembers that this connection holds the key (also
when the key is absent) and pushes its name when it changes, expires or is evicted. Reply and push come in
order on one connection, so: keep what was read, drop what is pushed. A value is only ever put here from a
reply to a read, never from our own write: Redis does not track what we wrote.
A lost connection may have lost pushes: everything is dropped. What was there then can still be looked at by who asks
for just that (`lost`), until the connection is back or its room is needed.

What goes when the bound is reached, S3-FIFO decides (Yang et al., "FIFO queues are all you need for cache
eviction", SOSP 2023). A new key is on trial in the small queue. If it leaves that one having been read `PROVEN`
times, it moves to the main queue; else it goes, and its name is remembered for as many evictions as there are
entries: a key that is read again in this time enters the main queue at once. What comes to the end of the main queue
goes round once more for each read. So keys that are read once, however many, push out only each other.
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Iterable
from typing import Any, Final

from mypy_extensions import mypyc_attr

from gateway.store.answer import Known

# What an entry takes beside the bytes of its key and its reply: objects, slots, the allocator's rounding. Measured as
# growth of a process by 100,000 entries.
ENTRY_OVERHEAD: Final = 200
# An answer or a session that a reply was parsed into takes more than the reply: it is an object of many small ones.
OBJECT_OVERHEAD: Final = 500
PLAIN: Final = frozenset({type(None), bytes, int})

# The paper's small queue has a tenth of the room, and lets pass what was read twice. Here it takes three reads: one
# page is several requests at once, each of which reads the user's session.
SMALL_SHARE: Final = 0.1
PROVEN: Final = 3

# Sizes are rounded up to these: entries of one size share what tells it, see `_Weight`.
SIZE_STEP: Final = 64
LARGEST: Final = 16 << 10

# A remembered name takes 8 bytes, and there is place for one per KiB of the bound: 1/128 of it, not counted in `bytes`.
BYTES_PER_NAME: Final = 1024
MASK: Final = 0xFFFFFFFF

# A put looks at so many entries at most: half a millisecond. A value that needs more room than that gives is not kept
# yet; its next read goes on.
MAX_STEPS: Final = 500
# Each hundredth of them goes even if it was read: where all were, a put need not walk over all of them to find room.
MERCY: Final = 100
# To free 100,000 entries takes 50 ms: after `clear` each put frees a few.
FREED_AT_ONCE: Final = 16
# A worker has few connections: what was mirrored is lost with the first.
MAX_LOST: Final = 16


class _Weight:
    """How many bytes an entry counts for, and in which queue. Those that are alike in both share one: two references
    would take an entry over a step of the allocator, 16 bytes.
    """

    __slots__ = ("queue", "size")

    def __init__(self, queue: _Queue, size: int) -> None:
        self.queue = queue
        self.size = size


class _Kept(Known):
    """An answer and its place in a queue. The queue is a linked ring: what is withdrawn leaves from the middle.

    It is the answer itself, and not something that holds it: there may be hundreds of thousands.
    """

    __slots__ = ("key", "newer", "older", "reads", "weight")
    __deletable__ = ("newer", "older")

    key: bytes
    reads: int
    weight: _Weight
    older: _Kept
    newer: _Kept

    @property
    def size(self) -> int:
        return self.weight.size

    def unlink(self) -> None:
        older, newer = self.older, self.newer
        older.newer = newer
        newer.older = older
        # Whoever still has the answer is not to hold its neighbours, and theirs.
        del self.older, self.newer
        weight = self.weight
        weight.queue.bytes -= weight.size


class _Queue:
    """First in, first out. `end` stands between the newest and the oldest."""

    __slots__ = ("_weights", "bytes", "end")

    def __init__(self) -> None:
        self.bytes = 0
        self._weights: dict[int, _Weight] = {}
        self.end = _Kept(None)
        self.end.older = self.end.newer = self.end

    def append(self, entry: _Kept, size: int) -> None:
        end = self.end
        newest = end.older
        weight = self._weights.get(size)
        if weight is None:
            weight = _Weight(self, size)
            if size < LARGEST:
                self._weights[size] = weight
        entry.weight = weight
        entry.older = newest
        entry.newer = end
        newest.newer = end.older = entry
        self.bytes += size


@mypyc_attr(allow_interpreted_subclasses=True)
class Mirror:
    """A bounded map of keys to what was read of them.

    Args:
        max_bytes: the bound on keys, values and overhead together; 0 keeps nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self.hits = 0
        self.misses = 0
        self.evictions = 0
        self.invalidations = 0
        """Grows with all that Redis withdraws, kept or not: while it stands still, nothing that was read changed."""
        self._entries: dict[bytes, _Kept] = {}
        self._small = _Queue()
        self._main = _Queue()
        self._small_bytes = int(SMALL_SHARE * max_bytes)
        # A name's place is its hash; what stands there is when it went (by `evictions`), and other bits of the hash.
        self._names = array("Q", bytes(8 * (max_bytes // BYTES_PER_NAME + 1)))
        # What `clear` left to be freed. It is there still, so it counts against the bound.
        self._cleared: list[dict[bytes, _Kept]] = []
        self._cleared_bytes = 0
        # Of these, what was there when a connection was lost, and when Redis had last said something.
        self._lost: list[tuple[dict[bytes, _Kept], float]] = []
        self._watchers: dict[bytes, list[asyncio.Future[None]]] = {}

    def __repr__(self) -> str:
        return f"<Mirror {len(self._entries)} entries, {self.bytes} bytes>"

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes) -> Known | None:
        """The answer that was kept, or None."""
        entry = self._entries.get(key)
        if entry is None:
            self.misses += 1
            return None
        self.hits += 1
        if entry.reads < PROVEN:
            entry.reads += 1
        return entry

    def put(self, key: bytes, value: Any, size: int) -> None:
        """Keep what a read has just returned. `size` is the reply's weight in bytes."""
        self.drop(key)
        size = taken(key, value, size)
        if size > self.max_bytes:
            return
        if self._cleared and not self._lost:
            self._free(FREED_AT_ONCE)
        if self.bytes + self._cleared_bytes + size > self.max_bytes and not self._make_room(size):
            return
        self._entries[key] = entry = _Kept(value)
        entry.key = key
        entry.reads = 0
        queue = self._main if self._remembers(key) else self._small
        queue.append(entry, size)
        self.bytes += size

    def drop(self, key: bytes) -> None:
        """Forget one key."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            entry.unlink()
            self.bytes -= entry.size

    def invalidate(self, keys: Iterable[bytes] | None) -> None:
        """Redis withdraws these keys; None means all of them."""
        if keys is None:
            self.clear()
            return
        for key in keys:
            self.invalidations += 1
            self.drop(key)
            if self._watchers:
                self._wake(self._watchers.pop(key, ()))

    def clear(self) -> None:
        """Forget everything, and wake all who watch: they must look again."""
        self._lost.clear()
        self._empty()

    def lose(self, at: float) -> None:
        """`clear`, but what was there can be looked at by `lost`.

        Args:
            at: when Redis has said something for the last time.
        """
        if self._entries and len(self._lost) < MAX_LOST:
            self._lost.append((self._entries, at))
        self._empty()

    def lost(self, key: bytes, since: float) -> Any:
        """What was kept of a key when a connection was lost, if that was after `since`; None where that was nothing."""
        for entries, at in self._lost:
            entry = entries.get(key)
            if entry is not None and at >= since:
                return entry.value
        return None

    def forget(self, key: bytes) -> None:
        """`drop`, also from what `lost` tells."""
        self.drop(key)
        for entries, _ in self._lost:
            entry = entries.pop(key, None)
            if entry is not None:
                entry.unlink()
                self._cleared_bytes -= entry.size

    def _empty(self) -> None:
        self.invalidations += 1
        if self._entries:
            self._cleared.append(self._entries)
            self._cleared_bytes += self.bytes
            self._entries = {}
            self._small = _Queue()
            self._main = _Queue()
            self.bytes = 0
        watchers, self._watchers = self._watchers, {}
        for futures in watchers.values():
            self._wake(futures)

    def watch(self, key: bytes) -> asyncio.Future[None]:
        """A future that is done once Redis withdraws this key, or the connection is lost.

        The key must have been read through the mirror before; cancel the future when it is of no more use.
        """
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._watchers.setdefault(key, []).append(future)
        future.add_done_callback(lambda done: self._forget(key, done))
        return future

    def _forget(self, key: bytes, future: asyncio.Future[None]) -> None:
        futures = self._watchers.get(key)
        if futures is not None and future in futures:
            futures.remove(future)
            if not futures:
                del self._watchers[key]

    @staticmethod
    def _wake(futures: Iterable[asyncio.Future[None]]) -> None:
        for future in futures:
            if not future.done():
                future.set_result(None)

    def _make_room(self, size: int) -> bool:
        """Whether there is room for so many bytes now."""
        room = self.max_bytes - size
        for step in range(1, MAX_STEPS + 1):
            if self._cleared:
                self._free(1)
            else:
                self._pass_over(mercy=step % MERCY > 0)
            if self.bytes + self._cleared_bytes <= room:
                return True
        return False

    def _pass_over(self, *, mercy: bool) -> None:
        """The oldest entry of a queue moves on, or goes."""
        small, main = self._small, self._main
        if small.bytes > self._small_bytes or not main.bytes:
            entry = small.end.newer
            entry.unlink()
            if entry.reads == PROVEN and mercy:
                entry.reads = 0
                main.append(entry, entry.size)
                return
            self._remember(entry.key)
        else:
            entry = main.end.newer
            entry.unlink()
            if entry.reads and mercy:
                entry.reads -= 1
                main.append(entry, entry.size)
                return
        del self._entries[entry.key]
        self.bytes -= entry.size
        self.evictions += 1

    def _remember(self, key: bytes) -> None:
        code = hash(key)
        self._names[code % len(self._names)] = (self.evictions & MASK) << 32 | (code >> 32 & MASK)

    def _remembers(self, key: bytes) -> bool:
        code = hash(key)
        name = self._names[code % len(self._names)]
        return name & MASK == code >> 32 & MASK and (self.evictions - (name >> 32)) & MASK <= len(self._entries)

    def _free(self, count: int) -> None:
        """Let go of a few entries that `clear` has taken away."""
        for _ in range(count):
            left = self._cleared[-1]
            if left:
                _, entry = left.popitem()
                entry.unlink()
                self._cleared_bytes -= entry.size
            if not left:
                self._cleared.pop()
                if not self._cleared:
                    return


def taken(key: bytes, value: Any, size: int) -> int:
    """What an entry counts for, in bytes; see `Mirror.put`."""
    size += len(key) + ENTRY_OVERHEAD
    if type(value) not in PLAIN:
        size += OBJECT_OVERHEAD
    rounded = -(-size // SIZE_STEP) * SIZE_STEP
    return rounded if rounded < LARGEST else size
