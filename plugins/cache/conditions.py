"""Conditional requests: the client's, answered from what is stored, and ours, to the upstream.

RFC 9110, section 13; RFC 9111, sections 4.3 and 3.2. Pure functions of header fields.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from multidict import CIMultiDict

from plugins.cache.syntax import parse_date

# The fields of a client's own conditions: those are decided here, what is fetched has to be whole.
CONDITIONS: Final = ("If-None-Match", "If-Modified-Since")
RANGES: Final = ("Range", "If-Range")

_ETAG: Final = re.compile(r'(?:W/)?("[^"]*")')

# A 304 or a HEAD's answer does not have the body that these describe; it stays what it is (RFC 9111, section 3.2).
_OF_THE_BODY: Final = frozenset({b"content-length", b"content-encoding", b"content-range", b"content-md5"})


def not_modified(conditions: Mapping[str, str], fields: CIMultiDict[str]) -> bool:
    """Whether a stored 200 is what the client has already (RFC 9110, section 13.2.2; RFC 9111, section 4.3.2).

    Args:
        conditions: the request's `if-none-match` and `if-modified-since`, as far as it has them.
        fields: the stored header fields.
    """
    wanted = conditions.get("if-none-match")
    if wanted is not None:
        if wanted.strip() == "*":
            return True
        own = opaque(fields.get("ETag", ""))
        return own is not None and own in _ETAG.findall(wanted)
    since = parse_date(conditions.get("if-modified-since", ""))
    modified = parse_date(fields.get("Last-Modified", "") or fields.get("Date", ""))
    return since is not None and modified is not None and modified <= since


def opaque(etag: str) -> str | None:
    """What entity tags are the same by in the weak comparison (RFC 9110, section 8.8.3.2); None for what is none."""
    match = _ETAG.fullmatch(etag.strip())
    return match[1] if match is not None else None


def is_strong(etag: str) -> bool:
    """Whether an entity tag is one of the very bytes (RFC 9110, section 8.8.1)."""
    return etag.startswith('"') and opaque(etag) == etag


def validators(fields: CIMultiDict[str]) -> dict[str, str]:
    """The conditions to ask with whether a stored answer is still the present one (RFC 9111, section 4.3.1)."""
    found = {}
    if opaque(etag := fields.get("ETag", "")) is not None:
        found["If-None-Match"] = etag.strip()
    if parse_date(modified := fields.get("Last-Modified", "")) is not None:
        found["If-Modified-Since"] = modified
    return found


def confirms(answer: CIMultiDict[str], stored: CIMultiDict[str]) -> bool:
    """Whether a 304 is about what is stored (RFC 9111, section 4.3.4): it names no other validator."""
    if "ETag" in answer:
        told, own = answer["ETag"], stored.get("ETag", "")
        # What is no entity tag is compared as it is: some servers leave out the quotes.
        return (opaque(told) or told) == (opaque(own) or own)
    return "Last-Modified" not in answer or answer["Last-Modified"] == stored.get("Last-Modified")


def matches_head(answer: CIMultiDict[str], length: int | None, stored: CIMultiDict[str], size: int) -> bool:
    """Whether the answer to a HEAD is about what is stored (RFC 9111, section 4.3.5).

    Args:
        length: what it says of the body's length, if anything.
        size: the stored body's.
    """
    if length is not None and length != size:
        return False
    named = [name for name in ("ETag", "Last-Modified") if name in answer]
    # Without a validator it may be about any body, and would make an old one look like the present one.
    return bool(named) and all(answer[name] == stored.get(name) for name in named)


def freshened(head: bytes, lines: bytes) -> bytes:
    """Stored header lines with those of a 304 or of a HEAD's answer in the place of theirs (RFC 9111, section 3.2).

    Without a `Date` among these there is none: the answer is of now, not of when the stored one was made (RFC 9110,
    section 6.6.1). An entity tag that only differs in being weak stays as it is: it tells of the stored body.
    """
    tags = {_tag(line) for line in lines_of(head)} - {None}
    new = [line for line in lines_of(lines) if name_of(line) not in _OF_THE_BODY and _tag(line) not in tags]
    names = {b"date", *map(name_of, new)}
    kept = [line for line in lines_of(head) if name_of(line) not in names]
    return b"".join([line + b"\r\n" for line in (*kept, *new)])


def without(head: bytes, name: bytes) -> bytes:
    """Header lines without those of a lower-cased name."""
    return b"".join([line + b"\r\n" for line in lines_of(head) if name_of(line) != name])


def names_in(head: bytes) -> frozenset[bytes]:
    """The lower-cased names in header lines."""
    return frozenset(map(name_of, lines_of(head)))


def lines_of(head: bytes) -> list[bytes]:
    """The header lines, without their ends."""
    return [line for line in head.split(b"\r\n") if line]


def name_of(line: bytes) -> bytes:
    """The lower-cased name of the field in a header line."""
    return line.partition(b":")[0].lower()


def _tag(line: bytes) -> bytes | None:
    """What an `ETag` is the same by in the weak comparison; None for another field."""
    return line.partition(b":")[2].strip().removeprefix(b"W/") if name_of(line) == b"etag" else None
