"""Stored answers for the wire, and the fields that say what the cache did: `X-Cache`, `Age`, `Cache-Status`.

`Cache-Status` (RFC 9211) is a list with one member for each cache on the way; ours is the last, as we are the closest
to the client. `X-Cache` is the same for people, in one word.
"""

from __future__ import annotations

from typing import Final

from multidict import CIMultiDict

from gateway.plugin import HIT, MISS, PASS, STALE, Response, problem
from plugins.cache.conditions import not_modified
from plugins.cache.entry import Entry, fields_of
from plugins.cache.facts import Facts
from plugins.cache.keys import Place

NAME: Final = "gateway"
ADDED: Final = (b"age", b"x-cache", b"cache-status")

WORDS: Final = {HIT: "HIT", STALE: "STALE", MISS: "MISS", PASS: "BYPASS"}
_NAME: Final = NAME.encode()


def hit(entry: Entry, now: float, place: Place) -> Response:
    """A fresh answer. The three lines we add change once a second; in between they are bytes already, at its place."""
    second = int(now)
    if place.shown_at != second or place.shown_of is not entry.head:
        plan = entry.plan
        place.shown = b"%bAge: %d\r\nX-Cache: HIT\r\nCache-Status: %b%b; hit; ttl=%d\r\n" % (
            entry.head,
            max(0, int(now - plan.born)),
            entry.prior.encode("utf-8", "surrogateescape"),
            _NAME,
            plan.expires - now,
        )
        place.shown_at, place.shown_of = second, entry.head
    return Response.prebuilt(entry.status, place.shown, entry.names, entry.body, outcome=HIT, reason=entry.reason)


def served(entry: Entry, facts: Facts, now: float, outcome: str, detail: str) -> Response:
    """Any stored answer, or 304 where the client has it already.

    Args:
        outcome: `HIT`, `STALE`, or `MISS` for what had to be fetched.
        detail: the parameters of our member in `Cache-Status`.
    """
    head, names, body, status, reason = entry.head, entry.names, entry.body, entry.status, entry.reason
    if facts.conditions and status == 200 and not_modified(facts.conditions, entry.fields()):
        head, names = without_body(head)
        names |= {*ADDED}
        status, body, reason = 304, b"", None
    age = max(0, int(now - entry.plan.born))
    ours = f"Age: {age}\r\nX-Cache: {WORDS[outcome]}\r\nCache-Status: {entry.prior}{NAME}; {detail}\r\n"
    return Response.prebuilt(
        status, head + ours.encode("utf-8", "surrogateescape"), names, body, outcome=outcome, reason=reason
    )


def conditional(response: Response, facts: Facts) -> Response:
    """An answer that was not stored, or 304 where the client has it already: its condition was not passed on."""
    if not facts.conditions or response.status != 200 or not isinstance(response.body, bytes):
        return response
    head = response.head()
    if not not_modified(facts.conditions, fields_of(head)):
        return response
    return Response.prebuilt(304, *without_body(head), b"", outcome=response.outcome)


def mark(response: Response, outcome: str, detail: str) -> Response:
    """Tell on an answer that was not stored before what the cache did; the same answer."""
    if response.outcome == PASS:
        # An error or a refusal stays one in the log.
        response.outcome = outcome
    prior = members(response.headers) if response.has(b"cache-status") else ""
    response.set("X-Cache", WORDS[outcome])
    response.set("Cache-Status", f"{prior}{NAME}; {detail}")
    return response


def members(fields: CIMultiDict[str]) -> str:
    """What caches before this one said in `Cache-Status`, with the comma that ours follows."""
    said = ", ".join([line.strip() for line in fields.getall("Cache-Status", ()) if line.strip()])
    return f"{said}, " if said else ""


def not_stored() -> Response:
    """504 for a client that wants a stored answer or none (RFC 9111, section 5.2.1.7)."""
    response = problem(504, "Not in the cache", "The request asks for a stored answer (only-if-cached); there is none.")
    return mark(response, MISS, "fwd=request; detail=only-if-cached")


def without_body(head: bytes) -> tuple[bytes, frozenset[bytes]]:
    """A 304's header lines, and the names in them: what describes the body stays with it (RFC 9110, section 15.4.5)."""
    lines = [line for line in head.split(b"\r\n") if line and not _describes_body(line)]
    names = frozenset(line.partition(b":")[0].lower() for line in lines)
    return b"".join([line + b"\r\n" for line in lines]), names


def _describes_body(line: bytes) -> bool:
    lower = line[:17].lower()
    return lower.startswith(b"content-") and not lower.startswith(b"content-location")
