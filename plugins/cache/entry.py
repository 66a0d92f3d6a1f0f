"""What is stored, as bytes: a fixed header, then what it names the lengths of.

    "GC" version kind crc32 | fixed fields | names, tags, ... | head | body

A record that is truncated, changed or of another version raises ValueError: it counts as absent.
"""

from __future__ import annotations

import zlib
from functools import lru_cache
from struct import Struct
from struct import error as StructError  # noqa: N812
from typing import Any, Final

from multidict import CIMultiDict

from plugins.cache.policy import Plan

MAGIC: Final = b"GC"
VERSION: Final = 3
ENTRY: Final = 1
INDEX: Final = 2
UNCACHEABLE: Final = 3

# Of 112 bits; as `bytes` they take 48 bytes where 128 bits take 64.
GENERATIONS_BYTES: Final = 14

_FRAME: Final = Struct(">2sBBI")
# status, flags, cost, the plan's times, generations, hard, part,
# lengths of reason, prior, names, vary, tags and head
_ENTRY: Final = Struct(f">HBfdddddd{GENERATIONS_BYTES}s{GENERATIONS_BYTES}sQQqHHIHII")
STRICT: Final = 1
GZIP: Final = 2
PART: Final = 4
COMMON: Final = 8
_TIME: Final = Struct(">d")
_CODINGS: Final = {0: "", GZIP: "gzip"}
UNKNOWN_LENGTH: Final = -1
NO_PART: Final = (0, 0, UNKNOWN_LENGTH)
NO_REASON: Final = 0xFFFF
SEPARATOR: Final = "\n"
NO_NAMES: Final[frozenset[bytes]] = frozenset()
MAX_SHARED: Final = 512

# A tag that is not in the entry cannot be purged: an answer with more is not stored.
MAX_TAGS: Final = 64
MAX_TEXT: Final = 0xFFFE

Part = tuple[int, int, int | None]
"""Which bytes of a whole a 206 has: the first, the last, and how long the whole is (RFC 9110, section 14.4)."""


class Entry:
    """A stored answer.

    Args:
        status: its status code.
        plan: how long it is fresh, and what it varies on.
        head: its header lines as they are sent, without `Age`, `X-Cache` and `Cache-Status`.
        names: the lower-cased names in `head`.
        body: its whole body, as `coding` says.
        generations: the fingerprint of the generations it was made under (see `store`).
        hard: the same of what a soft purge leaves as it is; if not given, the same.
        tags: what it can be purged by.
        reason: its reason phrase, if it had one.
        prior: the members of its `Cache-Status`, from caches before this one.
        coding: "gzip" where the body was compressed to be stored, else "".
        part: of a 206, what it has.
        cost: seconds it took to fetch.
        common: its upstream has said that it is for all, whoever asks.
    """

    __slots__ = (
        "body",
        "coding",
        "common",
        "cost",
        "generations",
        "hard",
        "head",
        "names",
        "part",
        "plan",
        "prior",
        "proof",
        "proven",
        "reason",
        "status",
        "tags",
    )

    def __init__(
        self,
        status: int,
        plan: Plan,
        head: bytes,
        names: frozenset[bytes],
        body: bytes,
        *,
        generations: bytes = bytes(GENERATIONS_BYTES),
        tags: tuple[str, ...] = (),
        reason: str | None = None,
        prior: str = "",
        hard: bytes | None = None,
        coding: str = "",
        part: Part | None = None,
        cost: float = 0.0,
        common: bool = False,
    ) -> None:
        self.status = status
        self.plan = plan
        self.head = head
        self.names = names
        self.body = body
        self.generations = generations
        self.hard = generations if hard is None else hard
        self.tags = tags
        self.reason = reason
        self.prior = prior
        self.coding = coding
        self.part = part
        self.cost = cost
        self.common = common
        # Of this worker's copy: at which state of the mirror its generations were found unchanged; without a mirror,
        # what they were then.
        self.proven = -1
        self.proof: list[bytes | None] | None = None

    def __copy__(self) -> Entry:
        one = Entry(
            self.status,
            self.plan,
            self.head,
            self.names,
            self.body,
            generations=self.generations,
            tags=self.tags,
            reason=self.reason,
            prior=self.prior,
            hard=self.hard,
            coding=self.coding,
            part=self.part,
            cost=self.cost,
            common=self.common,
        )
        one.proven, one.proof = self.proven, self.proof
        return one

    def __repr__(self) -> str:
        return f"<Entry {self.status}, {len(self.body)} bytes, until {self.plan.expires:.0f}>"

    def fields(self) -> CIMultiDict[str]:
        """Its header fields."""
        return fields_of(self.head)


class Index:
    """The names of the request fields that the variants of an answer are told apart by.

    Args:
        names: lower-cased, sorted.
        made: seconds since 1970.
    """

    __slots__ = ("made", "names")

    def __init__(self, names: tuple[str, ...], made: float) -> None:
        self.names = names
        self.made = made

    def __repr__(self) -> str:
        return f"<Index {', '.join(self.names)}>"


class Uncacheable:
    """The answer here could not be stored: until then requests do not wait for each other."""

    __slots__ = ("until",)

    def __init__(self, until: float) -> None:
        self.until = until

    def __repr__(self) -> str:
        return f"<Uncacheable until {self.until:.0f}>"


Stored = Entry | Index | Uncacheable


def encode(stored: Stored) -> bytes:
    """As bytes.

    Raises:
        ValueError: a text in it is too long for the format.
    """
    if isinstance(stored, Uncacheable):
        return _framed(UNCACHEABLE, _TIME.pack(stored.until))
    if isinstance(stored, Index):
        return _framed(INDEX, _TIME.pack(stored.made) + SEPARATOR.join(stored.names).encode())
    plan = stored.plan
    reason = b"" if stored.reason is None else stored.reason.encode("utf-8", "surrogateescape")
    prior = stored.prior.encode("utf-8", "surrogateescape")
    names = b"\n".join(stored.names)
    vary = SEPARATOR.join(plan.vary).encode("utf-8", "surrogateescape")
    tags = SEPARATOR.join(stored.tags).encode("utf-8", "surrogateescape")
    if max(len(reason), len(prior), len(vary)) > MAX_TEXT:
        raise ValueError(f"a text of more than {MAX_TEXT} bytes")
    first, last, complete = stored.part or NO_PART
    fixed = _ENTRY.pack(
        stored.status,
        (STRICT if plan.strict else 0)
        | (GZIP if stored.coding else 0)
        | (PART if stored.part else 0)
        | (COMMON if stored.common else 0),
        stored.cost,
        plan.born,
        plan.refresh_from,
        plan.expires,
        plan.stale_until,
        plan.error_until,
        plan.kept_until,
        stored.generations,
        stored.hard,
        first,
        last,
        UNKNOWN_LENGTH if complete is None else complete,
        NO_REASON if stored.reason is None else len(reason),
        len(prior),
        len(names),
        len(vary),
        len(tags),
        len(stored.head),
    )
    return _framed(ENTRY, b"".join((fixed, reason, prior, names, vary, tags, stored.head, stored.body)))


def decode(data: Any) -> Stored | None:
    """What `encode` made bytes of; None for None, which is an absent key.

    Raises:
        ValueError: the bytes are something else, of another version, or damaged.
    """
    if data is None:
        return None
    try:
        magic, version, kind, checksum = _FRAME.unpack_from(data)
        if magic != MAGIC:
            raise ValueError("not a cache entry")
        if version != VERSION:
            raise ValueError(f"an entry of version {version}, not {VERSION}")
        payload = memoryview(data)[_FRAME.size :]
        if _checksum(kind, payload) != checksum:
            raise ValueError("a damaged entry")
        if kind == ENTRY:
            return _entry(data, payload)
        (time,) = _TIME.unpack_from(payload)
        if kind == UNCACHEABLE:
            return Uncacheable(time)
        if kind == INDEX:
            return Index(_texts(bytes(payload[_TIME.size :])), time)
    except (StructError, TypeError) as error:
        raise ValueError(f"not a cache entry ({error})") from error
    raise ValueError(f"an unknown kind of entry: {kind}")


def _entry(data: bytes, payload: memoryview) -> Entry:
    (
        status,
        flags,
        cost,
        born,
        refresh_from,
        expires,
        stale_until,
        error_until,
        kept_until,
        generations,
        hard,
        first,
        last,
        complete,
        reason_size,
        prior_size,
        names_size,
        vary_size,
        tags_size,
        head_size,
    ) = _ENTRY.unpack_from(payload)
    start = _FRAME.size + _ENTRY.size
    pieces = []
    for size in (
        0 if reason_size == NO_REASON else reason_size,
        prior_size,
        names_size,
        vary_size,
        tags_size,
        head_size,
    ):
        pieces.append(data[start : start + size])
        start += size
    reason, prior, names, vary, tags, head = pieces
    # A worker keeps very many of these: what is the same shares one object.
    plan = Plan(
        born,
        expires if refresh_from == expires else _same(refresh_from),
        expires,
        expires if stale_until == expires else stale_until,
        expires if error_until == expires else error_until,
        expires if kept_until == expires else kept_until,
        bool(flags & STRICT),
        _texts(vary),
    )
    return Entry(
        status,
        plan,
        head,
        _names(names),
        data[start:],
        generations=generations,
        tags=_texts(tags),
        reason=None if reason_size == NO_REASON else _reason(reason),
        prior=prior.decode("utf-8", "surrogateescape") if prior else "",
        hard=None if hard == generations else hard,
        coding=_CODINGS[flags & GZIP],
        part=(first, last, None if complete == UNKNOWN_LENGTH else complete) if flags & PART else None,
        cost=_same(cost),
        common=bool(flags & COMMON),
    )


@lru_cache(1024)
def _same(seconds: float) -> float:
    """An equal number. Those with whole milliseconds, or seconds, share the objects."""
    return seconds


def _reason(data: bytes) -> str:
    """A reason phrase. Most answers have the same, and share one object."""
    return _known_reason(data) if len(data) <= MAX_SHARED else data.decode("utf-8", "surrogateescape")


@lru_cache(1024)
def _known_reason(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


@lru_cache(1024)
def _known_names(data: bytes) -> frozenset[bytes]:
    return frozenset(data.split(b"\n"))


def _names(data: bytes) -> frozenset[bytes]:
    """The names of the fields in a head. Most answers have the same, and share one object."""
    if len(data) > MAX_SHARED:
        return frozenset(data.split(b"\n"))
    return _known_names(data) if data else NO_NAMES


def _texts(data: bytes) -> tuple[str, ...]:
    return tuple(data.decode("utf-8", "surrogateescape").split(SEPARATOR)) if data else ()


def _framed(kind: int, payload: bytes) -> bytes:
    return _FRAME.pack(MAGIC, VERSION, kind, _checksum(kind, payload)) + payload


def _checksum(kind: int, payload: bytes | memoryview) -> int:
    return zlib.crc32(payload, kind)


def fields_of(head: bytes) -> CIMultiDict[str]:
    """Header lines as fields."""
    lines = head.decode("utf-8", "surrogateescape").split("\r\n")
    return CIMultiDict([(name, value) for name, _, value in (line.partition(": ") for line in lines if line)])
