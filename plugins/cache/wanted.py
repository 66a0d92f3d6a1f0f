"""What a request asks Redis for, prepared for the next one that wants the same."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

from gateway.plugin import All, Answer, Gets, Read
from plugins.cache.entry import Stored, decode

# Each request that is remembered may keep so much of what it was answered with the last time.
MAX_REMEMBERED_BYTES: Final = 4096
MAX_GENERATION_BYTES: Final = 64


class Wanted:
    """What tells the answer to a request, prepared for being asked again and again.

    Args:
        place: where it lies.
        generations: the keys it hangs on: those of its address, then those of its tags.
    """

    __slots__ = ("_decoder", "_gets", "entry", "generations")

    def __init__(self, place: bytes, generations: Sequence[bytes]) -> None:
        self.entry = Read("GET", place, parse=decode, bulk=True, anywhere=True)
        self.generations = tuple([_generation(name) for name in generations])
        self._decoder = Decoder()
        self._gets: Gets | None = None

    @property
    def gets(self) -> Gets:
        """All of it in one command. What was small the last time comes with the decisions: one wake-up for both."""
        gets = self._gets
        if gets is None:
            stored = Read("GET", self.entry.key, parse=self._decoder.decode, bulk=True)
            # What a generation looks like does not matter: it is what it was, or not.
            gets = self._gets = Gets([stored, *[Read("GET", read.key) for read in self.generations]])
        gets.bulk = not self._decoder.small
        return gets


class Decoder:
    """Decodes what mostly is what it was the last time."""

    __slots__ = ("_raw", "_stored", "small")

    def __init__(self) -> None:
        self.small = False
        """It was there, and no decision is late for it: see `Redis.ask`."""
        self._raw: bytes | None = None
        self._stored: Stored | None = None

    def decode(self, raw: Any) -> Stored | None:
        """See `entry.decode`."""
        if raw is not None and raw == self._raw:
            return self._stored
        self.small = False
        stored = decode(raw)
        if raw is not None and len(raw) <= MAX_REMEMBERED_BYTES:
            self._raw, self._stored = raw, stored
            self.small = True
        return stored


class Found(All):
    """An entry and its generations, and the state before they were asked for."""

    __slots__ = ("state",)

    def __init__(self, answers: Sequence[Answer], state: int) -> None:
        self.state = state
        super().__init__(answers)


@lru_cache(1024)
def _generation(name: bytes) -> Read:
    """Asks for a generation. Those of everything and of routes are wanted with each answer: they share one object."""
    return Read("GET", name, parse=parse_generation)


def parse_generation(value: Any) -> bytes | None:
    """A generation as it stands in Redis.

    Raises:
        ValueError: it is something else.
    """
    if value is None:
        return None
    if not isinstance(value, bytes) or not 0 < len(value) <= MAX_GENERATION_BYTES:
        raise ValueError("not a generation")
    return value
