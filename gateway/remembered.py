"""What was worked out once, kept for the next one that asks the same. Bounded: clients choose what is asked."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Final, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

# One newcomer of so many gets the place of the oldest, once there is no other.
ADMITTED: Final = 8
# Where the hashes of bytes stand that came once.
SEEN: Final = 4096


class Remembered(Generic[K, V]):
    """A bounded map; the oldest leaves first.

    Args:
        limit: how many it holds at most.
        admitted: of how many newcomers one is taken in once it is full. More things in turn than there is room for
            would push each other out, each just before it comes again: with 8, most of those that are here stay. With
            1 every newcomer is taken in: for what soon comes no more.
    """

    __slots__ = ("_admitted", "_items", "_limit", "_newcomers", "get")

    def __init__(self, limit: int, *, admitted: int = ADMITTED) -> None:
        self._limit = limit
        self._admitted = admitted
        self._newcomers = 0
        self._items: OrderedDict[K, V] = OrderedDict()
        self.get = self._items.get  # no frame between on the hot path

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {len(self)} of {self._limit}>"

    def __len__(self) -> int:
        return len(self._items)

    def put(self, key: K, value: V) -> None:
        """Keep it, if there is room for it."""
        if len(self._items) >= self._limit:
            self._newcomers += 1
            if self._newcomers % self._admitted:
                return
            self._items.popitem(last=False)
        self._items[key] = value


class Recurring(Remembered[bytes, V]):
    """What some bytes mean. Only what comes a second time is taken in, so that bytes which differ each time (a trace
    id) cost no memory and push nothing out.

    Args:
        max_bytes: longer ones are not remembered.
    """

    __slots__ = ("_max_bytes", "_seen")

    def __init__(self, limit: int, max_bytes: int, *, admitted: int = ADMITTED) -> None:
        super().__init__(limit, admitted=admitted)
        self._max_bytes = max_bytes
        self._seen = [0] * SEEN

    def put(self, key: bytes, value: V) -> None:
        """Keep it, if the same bytes came before not long ago, and there is room for it."""
        if len(key) > self._max_bytes:
            return
        number = hash(key)
        slot = number % SEEN
        if self._seen[slot] != number:
            self._seen[slot] = number
        else:
            super().put(key, value)
