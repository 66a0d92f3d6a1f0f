"""Stored bodies in gzip: which are worth it, the work itself, and what it changes in an answer's header.

A stored answer is one of two representations (RFC 9110, section 8.4): the *identity* one, as the upstream sent it, and
the *gzip* one. Its entry keeps the identity head and the gzip body:

    gzip representation       as_gzip(head)       body           for those who accept gzip
    identity representation   as_identity(head)   unpack(body)   for all others, for ranges, for `no-transform`

Each is complete: conditions are judged against its own head, and a 304 has its own `ETag`. Ranges are of the identity
representation only, so nobody puts together what two versions of zlib have packed.

gzip, as nearly every client takes it. zstd would need a library, and would mostly be undone again for a client.

The `ETag` gets a suffix: `"abc"` becomes `"abc;gzip"`. A strong one has to differ between codings (section 8.8.3.3);
making it weak, as nginx does, takes two things away: a client that edits could never use it in `If-Match` (section
13.1.1), and nobody could tell which of the two representations a client has. It is not Apache's `-gzip`: what is cut
off on the way to the upstream must be ours alone.

Off by default (BREACH: RFC 7457, section 2.6): where a body has a secret and a text that the request chose, its length
tells whoever listens, and can have requests sent, how much the two have in common.
"""

from __future__ import annotations

import asyncio
import re
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from typing import Any, Final, TypeVar

from multidict import CIMultiDict

from gateway.plugin import Request
from plugins.cache.entry import Entry
from plugins.cache.syntax import parse_directives

T = TypeVar("T")

SUFFIX: Final = ";gzip"

# Of what it would be, a packed body must save this part: less does not pay for unpacking it.
SAVED: Final = 0.1
LEVEL: Final = 6
"""zlib's own default: packed once, sent often. For JSON, 9 takes four times as long and saves 4 % more."""

INLINE: Final = 32 * 1024
"""Bytes; what is longer is worked on in a thread, as it would hold up the loop. zlib lets go of the interpreter."""
THREADS: Final = 2
MAX_WAITING: Final = 64
"""Bodies that wait for a thread or are in one; past it what would be packed is stored as it is."""

# zlib's number for the format of gzip; its header says no time and no name, so that the same body gives the same bytes.
_GZIP: Final = 16 + zlib.MAX_WBITS
# The length of what was packed stands at the end (RFC 1952, section 2.3.1).
_SIZE_BYTES: Final = 4

_COMPRESSIBLE: Final = re.compile(
    r"text/.+|.+\+(?:cbor|json|json-seq|text|xml|yaml)|font/[ot]tf|image/(?:bmp|x-icon|vnd\.microsoft\.icon)"
    r"|application/(?:cbor|ecmascript|graphql|(?:x-)?javascript|(?:x-)?json|json-seq|jsonl|msgpack|(?:x-)?ndjson|rtf|sql"
    r"|toml|vnd\.ms-fontobject|wasm|x-www-form-urlencoded|xml|(?:x-)?yaml)"
)

# No content, or only a part of one.
_WITHOUT: Final = frozenset({204, 205, 206, 304})
# Coded already, a part of something, or signed as it is (RFC 9421).
_PREVENTING: Final = ("Content-Encoding", "Content-Range", "Signature-Input")

# What describes the bytes of the identity representation: of content (RFC 9530, section 2; RFC 1864) and of the
# representation, which has its coding applied (RFC 9530, section 3; RFC 3230); and its ranges.
_DROPPED: Final = frozenset({b"content-md5", b"content-digest", b"repr-digest", b"digest", b"accept-ranges"})
_ETAG: Final = re.compile(rb'(?:W/)?"[^"]*+"')
_ETAGS: Final = re.compile(r'((?:W/)?"[^"]*+)"')
_CODING_LINE: Final = b"Content-Encoding: gzip\r\n"
_ACCEPT_ENCODING: Final = b"Accept-Encoding"

_WEIGHT: Final = re.compile(r"q=(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)")
_SPACE: Final = " \t"


def worth(status: int, fields: CIMultiDict[str], size: int, threshold: int) -> bool:
    """Whether an answer may be stored in gzip and probably gets shorter by it.

    Args:
        fields: its header fields, as the upstream sent them.
        size: bytes of its body.
        threshold: bytes from which on bodies are compressed; 0: none is.
    """
    if not threshold or size < threshold or status < 200 or status in _WITHOUT:
        return False
    if any(name in fields for name in _PREVENTING):
        return False
    types = fields.getall("Content-Type", ())
    if len(types) != 1 or not _COMPRESSIBLE.fullmatch(types[0].partition(";")[0].strip().lower()):
        return False
    # RFC 9111, section 5.2.2.6. In a targeted field (RFC 9213), whosever it is, it is as good a wish.
    said = [value for name, value in fields.items() if name.lower().endswith("cache-control")]
    return not any("no-transform" in parse_directives(value) for value in said)


# -- the work --------------------------------------------------------------------------------------


class _Threads:
    """Moves work off the loop. Threads of its own: the loop's look up names, and must not wait for this."""

    def __init__(self, number: int) -> None:
        self._pool = ThreadPoolExecutor(number, thread_name_prefix="cache-gzip")
        self.waiting = 0

    async def run(self, work: Callable[..., T], *args: Any) -> T:
        self.waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work, *args)
        finally:
            self.waiting -= 1


# Of the process: more plugins do not make more cores. A thread starts with the first body for it.
_threads = _Threads(THREADS)


async def pack(body: bytes) -> bytes | None:
    """A body in gzip; None if that saves too little, or if too many wait for it already."""
    if len(body) <= INLINE:
        return _pack(body)
    if _threads.waiting >= MAX_WAITING:
        return None
    return await _threads.run(_pack, body)


def _pack(body: bytes) -> bytes | None:
    packed = zlib.compress(body, LEVEL, _GZIP)
    return packed if len(packed) <= len(body) * (1 - SAVED) else None


def size_of(body: bytes) -> int:
    """How long the body was, by its own account, that `pack` made this of."""
    return int.from_bytes(body[-_SIZE_BYTES:], "little")


async def unpack(body: bytes, limit: int) -> bytes:
    """The body that `pack` made this of. As many wait for it at once as there are requests.

    Args:
        limit: bytes; never is more than this made of it, and never more than it says itself.

    Raises:
        ValueError: it is damaged, something else, or would be longer than `limit`.
    """
    size = size_of(body)
    if size > limit:
        raise ValueError(f"a packed body of {size} bytes, where {limit} are allowed")
    if max(size, len(body)) <= INLINE:
        return _unpack(body, size)
    return await _threads.run(_unpack, body, size)


def _unpack(body: bytes, size: int) -> bytes:
    stream = zlib.decompressobj(_GZIP)
    try:
        # One byte of room is left if all is well: zlib then reads on to the checksum behind the last one.
        whole = stream.decompress(body, size + 1)
    except zlib.error as error:
        raise ValueError(f"a damaged packed body ({error})") from error
    if not stream.eof or stream.unused_data:
        raise ValueError("a packed body that is cut off, or longer than it says")
    return whole


# -- what clients take -----------------------------------------------------------------------------


def accepts_gzip(accept_encoding: str | None) -> bool:
    """Whether a client is to get gzip (RFC 9110, section 12.5.3).

    Without the field it may get anything, but is more likely to be a simple program: it gets no gzip. Nor does who
    wants `identity` more than gzip. What cannot be read counts as a weight of 0, and of a repeated coding the lowest.

    Args:
        accept_encoding: all its lines, joined by commas; None where there is none.
    """
    if accept_encoding is None:
        return False
    weights: dict[str, float] = {}
    for member in accept_encoding.lower().split(","):
        coding, parameter, text = member.partition(";")
        weight = 1.0
        if parameter:
            match = _WEIGHT.fullmatch(text.strip(_SPACE))
            weight = float(match[1]) if match else 0.0
        coding = coding.strip(_SPACE)
        if coding == "x-gzip":  # the same (section 8.4.1.3)
            coding = "gzip"
        weights[coding] = min(weight, weights.get(coding, 1.0))
    weight = weights.get("gzip", weights.get("*", 0.0))
    return weight > 0 and weight >= weights.get("identity", 0.0)


# -- the two representations -----------------------------------------------------------------------


def as_gzip(head: bytes, names: frozenset[bytes]) -> tuple[bytes, frozenset[bytes]]:
    """The head of the gzip representation, and the names in it.

    Args:
        head: header lines of the identity representation, as they are stored.
        names: the lower-cased names in `head`, and others that will be added.
    """
    lines: list[bytes] = []
    dropped: set[bytes] = set()
    for line in head.splitlines(keepends=True):
        name, _, value = line.partition(b":")
        name = name.lower()
        if name in _DROPPED or (name == b"etag" and not _ETAG.fullmatch(value.strip())):
            # Of an `ETag` that is none nobody could tell whose it is.
            dropped.add(name)
        elif name == b"etag":
            lines.append(b'%b%b"\r\n' % (line.rstrip()[:-1], SUFFIX.encode()))
        else:
            lines.append(line)
    lines.append(_CODING_LINE)
    head, names = as_identity(b"".join(lines), names)
    return head, (names - dropped) | {b"content-encoding"}


def as_identity(head: bytes, names: frozenset[bytes]) -> tuple[bytes, frozenset[bytes]]:
    """The head of the identity representation, where there is a gzip one too: both say so (section 12.5.5).

    Arguments and result are as those of `as_gzip`.
    """
    if b"vary" not in names:
        return b"%bVary: %b\r\n" % (head, _ACCEPT_ENCODING), names | {b"vary"}
    lines = head.splitlines(keepends=True)
    at = [number for number, line in enumerate(lines) if line[:5].lower() == b"vary:"]
    members = [member.strip() for number in at for member in lines[number][5:].split(b",")]
    members = [member for member in members if member]
    if b"*" not in members and _ACCEPT_ENCODING.lower() not in [member.lower() for member in members]:
        lines[at[0]] = b"Vary: %b\r\n" % b", ".join([*members, _ACCEPT_ENCODING])
        for number in at[1:]:
            lines[number] = b""
    return b"".join(lines), names


async def packed(entry: Entry, threshold: int) -> Entry:
    """What is to be stored of an answer: its gzip representation if that is `worth` it, else itself."""
    if not threshold or not worth(entry.status, entry.fields(), len(entry.body), threshold):
        return entry
    body = await pack(entry.body)
    if body is None:
        return entry
    one = copy(entry)
    one.body, one.coding = body, "gzip"
    return one


async def represented(entry: Entry, limit: int, *, gzip: bool) -> Entry:
    """One representation of what is stored, to be served as it is, not to be stored.

    Args:
        limit: as of `unpack`.

    Raises:
        ValueError: as `unpack`.
    """
    if not entry.coding:
        return entry
    one = copy(entry)
    one.coding = ""
    one.head, one.names = (as_gzip if gzip else as_identity)(entry.head, entry.names)
    if not gzip:
        one.body = await unpack(entry.body, limit)
    return one


def original_etag(text: str) -> str:
    """`If-None-Match` or `If-Match` as the upstream knows its tags: those of a gzip representation without the suffix.

    For requests that change something: without it each `If-Match` of a client that got gzip would fail. Not for
    `If-Range`, as parts of the two representations do not fit together; nor for the `If-None-Match` of a GET that is
    passed on, as a 304 would name another tag than the client has.
    """
    return _ETAGS.sub(lambda match: f'{match[1].removesuffix(SUFFIX)}"', text) if SUFFIX in text else text


def restore_etags(request: Request) -> None:
    """Have a request that changes something ask the upstream for the tags that it knows."""
    for name in ("If-Match", "If-None-Match"):
        if SUFFIX in (text := ", ".join(request.headers.getall(name, ()))):
            request.set_header(name, original_etag(text))
