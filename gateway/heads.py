"""Heads of requests that came before, by their bytes.

Clients send the same bytes again and again: the same path, the same fields, the same token. What such bytes mean need
not be worked out twice, so what was parsed, checked and routed once is kept here, with what plugins have worked out
from it (`Request.notes`). Byte for byte the same, or not at all: two requests that differ in anything share nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from gateway.request import Head

MAX_HEADS: Final = 4096
# A head weighs some 4 KB with all that hangs on it, so that all of them stay below 20 MB.
MAX_HEAD_BYTES: Final = 2048
# Where the hashes of heads stand that came once.
SEEN: Final = 4096
# Once it is full, one newcomer of so many gets the place of the oldest.
ADMITTED: Final = 8


class Heads:
    """A bounded map of raw heads to what they mean.

    Only what comes a second time is taken in, so that heads which differ each time (a trace id) cost no memory and
    push nothing out.
    """

    __slots__ = ("_heads", "_newcomers", "_seen", "get")

    def __init__(self) -> None:
        self._heads: OrderedDict[bytes, Head] = OrderedDict()
        self._seen = [0] * SEEN
        self._newcomers = 0
        self.get = self._heads.get

    def __repr__(self) -> str:
        return f"<Heads {len(self._heads)}>"

    def __len__(self) -> int:
        return len(self._heads)

    def put(self, raw: bytes, head: Head) -> None:
        """Keep it, if the same came before not long ago.

        Args:
            raw: all that was received; it must hold one whole head and nothing else.
        """
        if len(raw) > MAX_HEAD_BYTES:
            return
        number = hash(raw)
        slot = number % SEEN
        if self._seen[slot] != number:
            self._seen[slot] = number
            return
        if len(self._heads) >= MAX_HEADS:
            # More clients in turn than there is room for would push each other out, each just before it comes again.
            # So only some newcomers get a place, and most of those that are here stay.
            self._newcomers += 1
            if self._newcomers % ADMITTED:
                return
            self._heads.popitem(last=False)
        self._heads[raw] = head
