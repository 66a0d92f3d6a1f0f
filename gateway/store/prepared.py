"""Questions to Redis, prepared: packed once, asked as often as you like."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, cast

import hiredis

from gateway.store.script import Script
from gateway.store.slots import NO_SLOT, slot_of

Part = bytes | str | int | float

# hiredis' stub knows tuples of one word only.
pack: Final = cast(Callable[[tuple[Any, ...]], bytes], hiredis.pack_command)
CACHING_YES: Final = pack(("CLIENT", "CACHING", "YES"))


class Call:
    """A script call, prepared: ask it as often as you like. Keep it where the same call is made again and again.

    Args:
        keys: all in one hash tag.
        bulk: see `Redis.ask`.

    Raises:
        ValueError: the keys have no hash tag in common.
    """

    __slots__ = ("args", "bulk", "keys", "packed", "script", "slot")

    anywhere = False

    def __init__(self, script: Script, keys: Sequence[Part], args: Sequence[Part] = (), *, bulk: bool = False) -> None:
        self.script = script
        self.keys = tuple([key_of(key) for key in keys])
        self.args = args
        self.bulk = bulk
        self.packed = pack(("EVALSHA", script.sha, len(self.keys), *self.keys, *args))
        self.slot = NO_SLOT  # only a cluster needs it
        if len(self.keys) > 1 and len({slot_of(key) for key in self.keys}) > 1:
            # Everywhere, not only in a cluster: whoever writes a plugin rarely has one.
            raise ValueError(
                f"the keys of {script.name} lie in different slots of a cluster: give them one hash tag, such as"
                ' "{prefix}:cart:{{ID}}" and "{prefix}:lock:{{ID}}" with the braces in the names'
            )

    @property
    def key(self) -> bytes:
        """The one that tells the slot; any will do for a script without keys."""
        return self.keys[0] if self.keys else b""


class Read:
    """A reading command, or a script that only reads, on one key; prepared. See `Redis.read` for the arguments.

    Args:
        anywhere: what is read decides nothing, and may be as old as a replica has it, which is without a bound.
    """

    __slots__ = ("anywhere", "bulk", "command", "key", "packed", "parse", "slot")

    def __init__(
        self,
        command: str | Script,
        key: Part,
        *,
        parse: Callable[[Any], Any] | None = None,
        bulk: bool = False,
        anywhere: bool = False,
    ) -> None:
        self.command = command
        self.key = key_of(key)
        self.parse = parse
        self.bulk = bulk
        self.anywhere = anywhere
        self.packed = b""  # made when it is first needed: the mirror answers most
        self.slot = NO_SLOT


class Gets:
    """GETs on several keys, prepared; all with the same `bulk`."""

    __slots__ = ("_by_slot", "bulk", "key", "packed", "parsing", "reads", "slot")

    anywhere = False

    def __init__(self, reads: Sequence[Read]) -> None:
        self.reads = reads
        self.parsing = [(number, read) for number, read in enumerate(reads) if read.parse is not None]
        self.bulk = reads[0].bulk
        self.key = reads[0].key
        self.slot = NO_SLOT
        self.packed = pack(("MGET", *[read.key for read in reads]))
        self._by_slot: list[tuple[Gets, list[int]]] = []

    @property
    def by_slot(self) -> list[tuple[Gets, list[int]]]:
        """The same as one for each slot of a cluster, with the places of its values in the whole."""
        if not self._by_slot:
            numbers: dict[int, list[int]] = {}
            for number, read in enumerate(self.reads):
                numbers.setdefault(slot_of(read.key), []).append(number)
            self._by_slot = [(Gets([self.reads[number] for number in group]), group) for group in numbers.values()]
        return self._by_slot


def key_of(key: Part) -> bytes:
    """A key's name as Redis has it."""
    return key if type(key) is bytes else str(key).encode()
