"""What of an answer one client is given: all of it, 304 where he has it already, or the parts he asks for.

RFC 9110, section 13.2.2, has the order: first the conditions, then `Range`.
"""

from __future__ import annotations

from secrets import token_hex
from typing import Final

from multidict import CIMultiDict

from gateway.plugin import header_line
from plugins.cache.conditions import lines_of, name_of, not_modified
from plugins.cache.entry import Entry, Part, fields_of
from plugins.cache.facts import Facts
from plugins.cache.ranges import answer, honoured, part_of, satisfy

BOUNDARY_BYTES: Final = 16
# What a 304 does not tell again: it stays with the body (RFC 9110, section 15.4.5).
OF_THE_BODY: Final = frozenset(
    f"content-{name}".encode()
    for name in ("digest", "disposition", "encoding", "language", "length", "md5", "range", "type")
)


class Fitted:
    """Status, header lines, the names in them, and body."""

    __slots__ = ("body", "head", "names", "status")

    def __init__(self, status: int, lines: list[bytes], body: bytes) -> None:
        self.status = status
        self.head = b"".join([line + b"\r\n" for line in lines])
        self.names = frozenset(map(name_of, lines))
        self.body = body


def fit(facts: Facts, status: int, head: bytes, body: bytes, part: Part | None = None) -> Fitted | None:
    """What is given of an answer; None: just that.

    Args:
        facts: the request's.
        head: the answer's header lines.
        part: what is stored of the whole; it has what `facts` asks for (see `has`). None: all, or a 206 as it came.
    """
    if status not in (200, 206) or not (facts.conditions or facts.ranges):
        return None
    fields = fields_of(head)
    lines = lines_of(head)
    if facts.conditions and not_modified(facts.conditions, fields):
        return Fitted(304, [line for line in lines if name_of(line) not in OF_THE_BODY], b"")
    if not facts.ranges or (status == 206 and part is None) or not _honoured(facts, fields):
        return None
    first, complete = (0, len(body)) if part is None else (part[0], part[2])
    slices = satisfy(facts.ranges, len(body)) if part is None else part_of(facts.ranges, *part)
    if slices is None:
        return None
    kind = fields.get("Content-Type")
    status, named, body = answer(body, slices, complete, kind, boundary=token_hex(BOUNDARY_BYTES), first=first)
    if status == 200:
        return None
    new = [header_line(name, value).rstrip(b"\r\n") for name, value in named]
    if status == 416:
        return Fitted(416, new, body)
    replaced = {name_of(line) for line in new}
    return Fitted(206, [line for line in lines if name_of(line) not in replaced] + new, body)


def has(facts: Facts, entry: Entry) -> bool:
    """Whether a stored part is enough for this request."""
    if facts.ranges is None or entry.part is None or not _honoured(facts, entry.fields()):
        return False
    return part_of(facts.ranges, *entry.part) is not None


def _honoured(facts: Facts, fields: CIMultiDict[str]) -> bool:
    return honoured(facts.if_range, *[fields.get(name, "") for name in ("ETag", "Last-Modified", "Date")])
