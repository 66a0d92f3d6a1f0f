"""Parts of an answer (RFC 9110, section 14; RFC 9111, sections 3.3 and 3.4) as pure functions. No I/O, no clock.

Three notions, each with its own numbers:

    Spec    what a client asks for in `Range`, before the length is known
    slice   (start, stop) as Python counts, positions in the complete representation: what is sent
    Part    (first, last, complete length or None) as `Content-Range` counts: what is stored of a representation;
            None where the upstream did not know the length

A server may always ignore `Range` (section 14.2): whatever is odd here leads to the whole answer, never to a wrong one.
`Range` is for GET alone, and it is judged last, after all other conditions (section 13.2.2).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, NamedTuple

from plugins.cache.entry import Part
from plugins.cache.syntax import parse_date

Slice = tuple[int, int]

MAX_RANGES: Final = 32
"""A `Range` with more is ignored."""

CLOSE: Final = 80
"""Ranges with a gap of at most so many bytes are sent as one: about what the head of another part takes."""

STRONG_SECONDS: Final = 60.0
"""A `Last-Modified` that is this much older than `Date` is a strong validator (section 8.8.2.2). One second would do if
both were of one clock for sure; where the upstream sends no `Date` it is of the gateway's."""

# Enough for every unsigned 64-bit number; one that is stored has to fit a signed one.
_SPEC: Final = re.compile(r"([0-9]{0,20})-([0-9]{0,20})")
_CONTENT_RANGE: Final = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/(?:([0-9]{1,18})|\*)", re.IGNORECASE)
_STRONG_ETAG: Final = re.compile(r'"[^"]*+"')
_SPACE: Final = " \t"


class Spec(NamedTuple):
    """One range of `Range`: `first-last`, `first-` (last is None) or `-last`, the last bytes (first is None)."""

    first: int | None
    last: int | None


# -- what is asked for -----------------------------------------------------------------------------


def parse(text: str) -> tuple[Spec, ...] | None:
    """A `Range` field (section 14.1.1).

    Returns:
        Its ranges; None where the field is to be ignored: another unit, not the syntax, more than `MAX_RANGES`,
        several fields in one.
    """
    unit, equals, listed = text.strip(_SPACE).partition("=")
    if not equals or unit.lower() != "bytes":
        return None
    specs: list[Spec] = []
    for element in listed.split(","):
        piece = element.strip(_SPACE)
        if not piece:
            continue  # section 5.6.1.2: empty elements of a list do not count
        match = _SPEC.fullmatch(piece)
        if match is None or piece == "-" or len(specs) == MAX_RANGES:
            return None
        first, last = (int(digits) if digits else None for digits in match.groups())
        if first is not None and last is not None and last < first:
            return None
        specs.append(Spec(first, last))
    return tuple(specs) or None


def satisfy(specs: Sequence[Spec], size: int) -> tuple[Slice, ...]:
    """What of a complete body is asked for.

    Slices that overlap or are close to each other become one, so that the answer is never much longer than the body,
    however the ranges were made up (sections 14.2 and 15.3.7.2). Otherwise they keep the client's order.

    Args:
        size: bytes of the body.

    Returns:
        The slices; without any the answer is 416. Of an empty body (0, 0): no `Content-Range` could tell of a part
        of it, and `answer` makes it a 200.
    """
    if size == 0:
        return ((0, 0),)
    wanted: list[tuple[int, int, int]] = []
    for number, (first, last) in enumerate(specs):
        if first is None:
            start, stop = max(0, size - (last or 0)), size
        else:
            start, stop = first, size if last is None else min(last + 1, size)
        if start < stop:
            wanted.append((start, stop, number))
    joined: list[tuple[int, int, int]] = []
    for start, stop, number in sorted(wanted):
        if joined and start <= joined[-1][1] + CLOSE:
            before = joined.pop()
            joined.append((before[0], max(before[1], stop), min(before[2], number)))
        else:
            joined.append((start, stop, number))
    return tuple([(start, stop) for start, stop, _ in sorted(joined, key=lambda each: each[2])])


def part_of(specs: Sequence[Spec], first: int, last: int, complete: int | None) -> tuple[Slice, ...] | None:
    """What of a stored part answers these ranges (RFC 9111, section 3.3).

    Args:
        first, last, complete: the stored part.

    Returns:
        As `satisfy`, still as positions in the complete representation; None if more is needed than is stored, or the
        complete length is needed and not known.
    """
    if complete is None:
        # Without an end only what has both ends itself can be told to be all that was asked for.
        if any(spec.first is None or spec.last is None or spec.last > last for spec in specs):
            return None
        complete = last + 1
    slices = satisfy(specs, complete)
    return slices if all(first <= start and stop <= last + 1 for start, stop in slices) else None


def honoured(if_range: str | None, etag: str, last_modified: str, date: str) -> bool:
    """Whether `Range` counts: `If-Range` is not there or names exactly what is stored (section 13.1.5).

    Args:
        if_range: the request's field; None without one.
        etag, last_modified, date: the stored answer's fields; "" for one that it does not have.
    """
    if if_range is None:
        return True
    validator = if_range.strip(_SPACE)
    if '"' in validator[:3]:
        return _STRONG_ETAG.fullmatch(validator) is not None and validator == etag.strip(_SPACE)
    modified, made = parse_date(last_modified), parse_date(date)
    strong = modified is not None and made is not None and made - modified >= STRONG_SECONDS
    return strong and validator == last_modified.strip(_SPACE)


# -- what is stored --------------------------------------------------------------------------------


def content_range(text: str) -> Part | None:
    """The `Content-Range` of a 206 (section 14.4).

    Returns:
        The part; None if it is invalid, of another unit or of numbers too large to be true: such an answer is neither
        stored nor combined. One of several parts (`multipart/byteranges`) has no such field and is not stored either.
    """
    match = _CONTENT_RANGE.fullmatch(text.strip(_SPACE))
    if match is None:
        return None
    first, last = int(match[1]), int(match[2])
    complete = None if match[3] is None else int(match[3])
    return (first, last, complete) if first <= last and (complete is None or last < complete) else None


def consistent(part: Part, body_length: int) -> bool:
    """Whether a body has the length that its `Content-Range` says."""
    return part[1] - part[0] + 1 == body_length


def is_whole(part: Part) -> bool:
    """Whether it is all of the representation: it is to be treated like a 200 (section 15.3.7.3)."""
    return part[0] == 0 and part[1] + 1 == part[2]


def combine(
    old_part: Part, old_body: bytes, new_part: Part, new_body: bytes, max_size: int
) -> tuple[Part, bytes] | None:
    """Two parts of one representation as one (RFC 9111, section 3.4; RFC 9110, section 15.3.7.3).

    The caller has found the same strong `ETag` on both.

    Args:
        max_size: bytes; no longer body is made.

    Returns:
        The part and its body; None where a gap stays between them, it would be too long, or they contradict each other
        in their lengths or in a byte that both have: the validator was not as strong as it said.
    """
    if not (consistent(old_part, len(old_body)) and consistent(new_part, len(new_body))):
        return None
    if old_part[0] <= new_part[0]:
        (first, left_last, left_complete), left = old_part, old_body
        (right_first, right_last, right_complete), right = new_part, new_body
    else:
        (first, left_last, left_complete), left = new_part, new_body
        (right_first, right_last, right_complete), right = old_part, old_body
    last = max(left_last, right_last)
    complete = right_complete if left_complete is None else left_complete
    lengths_agree = right_complete in (None, complete) and (complete is None or last < complete)
    if right_first > left_last + 1 or last - first >= max_size or not lengths_agree:
        return None
    offset = right_first - first
    common = min(len(left) - offset, len(right))
    if left[offset : offset + common] != right[:common]:
        return None
    return (first, last, complete), left + right[common:]


def missing(part: Part) -> str | None:
    """The `Range` that completes a stored part (RFC 9111, section 3.3).

    To be sent with the stored strong `ETag` in `If-Range`, so that a representation that has changed comes whole. Where
    the complete length is not known, 416 may be the answer: then nothing was missing.

    Returns:
        Such as "bytes=5-"; None if the part does not begin with the first byte, or is all there is.
    """
    first, last, _ = part
    return None if first > 0 or is_whole(part) else f"bytes={last + 1}-"


# -- what is sent ----------------------------------------------------------------------------------


def answer(
    body: bytes,
    slices: Sequence[Slice],
    complete: int | None,
    content_type: str | None,
    *,
    boundary: str,
    first: int = 0,
) -> tuple[int, list[tuple[str, str]], bytes]:
    """The answer with these slices (sections 15.3.7 and 15.5.17).

    Args:
        body: the stored body, whole or a part.
        slices: from `satisfy` or `part_of`.
        complete: the length of the complete representation, None if it is not known; without slices it always is.
        content_type: the stored `Content-Type`; it stands in each of several parts.
        boundary: stands between several parts: letters and digits of a fixed number, at most 70, that nobody who writes
            bodies can guess (RFC 2046, section 5.1.1).
        first: the position of the body's first byte in the representation.

    Returns:
        The status, the fields that replace the stored ones of the same name, and the body. A 206 keeps all other
        fields of the 200; a 416 is no representation and keeps none of them.
    """
    if not slices:
        assert complete is not None
        return 416, [("Content-Range", f"bytes */{complete}")], b""
    if complete == 0:
        return 200, [], body
    pieces = [
        (f"bytes {start}-{stop - 1}/{'*' if complete is None else complete}", start, stop) for start, stop in slices
    ]
    if len(pieces) == 1:
        ((said, start, stop),) = pieces
        return 206, [("Content-Range", said)], body[start - first : stop - first]
    kind = "" if content_type is None else f"Content-Type: {content_type}\r\n"
    sent: list[bytes] = []
    for said, start, stop in pieces:
        head = f"--{boundary}\r\n{kind}Content-Range: {said}\r\n\r\n".encode("utf-8", "surrogateescape")
        sent += (head, body[start - first : stop - first], b"\r\n")
    sent.append(f"--{boundary}--\r\n".encode())
    return 206, [("Content-Type", f"multipart/byteranges; boundary={boundary}")], b"".join(sent)
