"""What this worker has read from Redis, and Redis has not withdrawn.

theory of operation
A read is sent with `CLIENT CACHING YES` before it, so Redis remembers that this connection holds the key (also
when the key is absent) and pushes its name when it changes, expires or is evicted. Reply and push come in
order on one connection, so: keep what was read, drop what is pushed. A value is only ever put here from a
reply to a read, never from our own write: Redis does not track what we wrote.
A lost connection may have lost pushes: everything is dropped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, Final

# An entry's own weight beside its key and value: dict slot, tuple, bytes headers (measured with tracemalloc).
ENTRY_OVERHEAD: Final = 256


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
        # key -> [value, size, read since it was last passed over]
        self._entries: dict[bytes, list[Any]] = {}
        self._watchers: dict[bytes, list[asyncio.Future[None]]] = {}

    def __repr__(self) -> str:
        return f"<Mirror {len(self._entries)} entries, {self.bytes} bytes>"

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes, default: Any = None) -> Any:
        """What was read, or `default`."""
        entry = self._entries.get(key)
        if entry is None:
            self.misses += 1
            return default
        self.hits += 1
        entry[2] = True
        return entry[0]

    def put(self, key: bytes, value: Any, size: int) -> None:
        """Keep what a read has just returned. `size` is the reply's weight in bytes."""
        self.drop(key)
        size += len(key) + ENTRY_OVERHEAD
        if size > self.max_bytes:
            return
        self._entries[key] = [value, size, False]
        self.bytes += size
        while self.bytes > self.max_bytes:
            self._evict()

    def drop(self, key: bytes) -> None:
        """Forget one key."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.bytes -= entry[1]

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
        self.invalidations += 1
        self._entries.clear()
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

    def _evict(self) -> None:
        """The oldest entry that was not read since it was last passed over (second chance)."""
        entries = self._entries
        while True:
            key = next(iter(entries))
            entry = entries.pop(key)
            if entry[2]:
                entry[2] = False
                entries[key] = entry
                continue
            self.bytes -= entry[1]
            self.evictions += 1
            return
