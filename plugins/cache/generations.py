"""What answers are made under, and how that ends.

A generation is a small key with a value that was never used before, `HARD` or `HARD~SOFT`. An answer remembers two
fingerprints of the generations it was made under: of the whole values, and of their hard parts.

    VALID   the whole values are what they were
    SOFT    only soft parts have changed: no longer fresh, but good for revalidation and in place of an error
    VOID    a hard part has changed, or is not there

A hard purge ends the generation, a soft one changes its soft part. Either is one small write. A generation that is lost
(expired, evicted, flushed) takes its answers with it: it can never bring back one that was purged.

A tag is only known once its answer is there. So a purge of a tag leaves its time, by Redis' clock: what was asked for
before it is not stored under that tag, or, after a soft one, as if it had been stored before.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from enum import Enum
from hashlib import blake2b
from math import ceil
from random import Random
from typing import Final, NamedTuple, NoReturn

from gateway.plugin import Script
from plugins.cache.entry import GENERATIONS_BYTES, Entry
from plugins.cache.policy import MAX_LIFE

PURGE_TAG: Final = Script.beside(__file__, "purge_tag.lua")
PURGE_SOFT: Final = Script.beside(__file__, "purge_soft.lua")

GENERATION_SECONDS: Final = 2 * MAX_LIFE
"""What is made in the first half of a generation's life can live its own whole life."""

PURGED: Final = b"purged-"
SOFT_MARK: Final = b"~"
# Until the year 2286: a longer one is none of ours.
MAX_TIME_DIGITS: Final = 16
MOMENT: Final = 0.001
# A value of 15 digits takes a step of the allocator less than one of 16, in each worker that keeps it.
UNLIKE_BITS: Final = 60
# Its own: whoever seeds the common one would have values come again, and purged answers with them.
_RANDOM: Final = Random()  # noqa: S311  # no secret

Command = tuple[bytes | str | int, ...]


class Standing(Enum):
    """What is left of a stored answer. It has no truth value: compare with `is`."""

    VALID = "valid"
    SOFT = "soft"
    VOID = "void"

    def __bool__(self) -> NoReturn:
        raise TypeError("a Standing has no truth value: compare it with `is`")


VALID: Final = Standing.VALID
SOFT: Final = Standing.SOFT
VOID: Final = Standing.VOID


class Ending(NamedTuple):
    """A purge of one generation.

    Args:
        name: its key.
        soft: only the soft part changes.
        tag: it is a tag's.
    """

    name: bytes
    soft: bool = False
    tag: bool = False

    @property
    def script(self) -> Script | None:
        """What to run in Redis; None: `UNLINK` will do."""
        if self.soft:
            return PURGE_SOFT
        return PURGE_TAG if self.tag else None

    def arguments(self) -> tuple[str | int, ...]:
        """The script's."""
        # Other generations than tags' are read before an answer is asked for: without one nothing hangs on it.
        begun = unlike_any() if self.soft and self.tag else ""
        return (milliseconds(GENERATION_SECONDS), begun) if self.soft else (milliseconds(GENERATION_SECONDS),)

    def command(self) -> Command:
        """The same for a client that has no scripts loaded."""
        script = self.script
        return ("UNLINK", self.name) if script is None else ("EVAL", script.source, 1, self.name, *self.arguments())


def unlike_any() -> str:
    """A text that no other one is, of whichever worker; no secret."""
    return f"{_RANDOM.getrandbits(UNLIKE_BITS):0{UNLIKE_BITS // 4}x}"


def fingerprint(values: Sequence[bytes | None]) -> bytes:
    """Generations as an entry remembers them; with one that is not there it is like no other."""
    if None in values:
        return b""
    text = b"".join([b"%d:%b" % (len(value), value) for value in values if value is not None])
    return blake2b(text, digest_size=GENERATIONS_BYTES).digest()


def fingerprints(values: Sequence[bytes | None]) -> tuple[bytes, bytes]:
    """The fingerprints of the whole values and of their hard parts."""
    whole = fingerprint(values)
    if not any(SOFT_MARK in value for value in values if value is not None):
        return whole, whole
    return whole, fingerprint([value and value.partition(SOFT_MARK)[0] for value in values])


def standing(entry: Entry, values: Sequence[bytes | None]) -> Standing:
    """What purges have left of an answer whose generations are `values` now."""
    whole, hard = fingerprints(values)
    if whole == entry.generations:
        return VALID
    return SOFT if hard == entry.hard else VOID


def purged_at(values: Sequence[bytes | None]) -> float:
    """When one of these was purged softly for the last time, in seconds since 1970; 0: never."""
    times = [value.partition(SOFT_MARK)[2] for value in values if value is not None]
    return max([int(time[:MAX_TIME_DIGITS]) / 1e6 for time in times if time.isdigit()], default=0.0)


def softened(entry: Entry, at: float, now: float) -> Entry:
    """An answer after a soft purge: as if it had been fresh until then. For how long it may then be served stale is
    what it was.

    Args:
        at: when it was purged, by Redis' clock; `now`: by the caller's. Both in seconds since 1970.
    """
    plan, left = entry.plan, copy(entry)
    expires = min(plan.expires, at, now)
    left.plan = replace(
        plan,
        # One that was purged while it was fetched was fresh for a moment too: who revalidates it does so for all.
        born=plan.born if plan.never_fresh else min(plan.born, expires - MOMENT),
        refresh_from=min(plan.refresh_from, expires),
        expires=expires,
        stale_until=expires + plan.stale_until - plan.expires,
        error_until=expires + plan.error_until - plan.expires,
    )
    left.proven = -1
    return left


def begun_before(value: bytes, since: int) -> bytes | None:
    """The generation of a tag, as it was for an answer whose fetch began at `since`.

    Args:
        since: microseconds by Redis' clock.

    Returns:
        None if the tag was purged after that; if softly, the value without its soft part.
    """
    hard, _, soft = value.partition(SOFT_MARK)
    if hard.startswith(PURGED) and _not_before(hard[len(PURGED) :], since):
        return None
    return hard if soft and _not_before(soft, since) else value


def _not_before(time: bytes, since: int) -> bool:
    # What is no time is nobody's: it may have been any.
    return not time.isdigit() or int(time) >= since


def milliseconds(seconds: float) -> int:
    """A time to live for Redis, which takes no zero."""
    return max(1, ceil(seconds * 1000))
