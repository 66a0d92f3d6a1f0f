"""Stored answers for the wire, and the fields that say what the cache did: `X-Cache`, `Age`, `Cache-Status`.

`Cache-Status` (RFC 9211) is a list with one member for each cache on the way; ours is the last, as we are the closest
to the client. `X-Cache` is the same for people, in one word.
"""

from __future__ import annotations

from math import floor
from typing import Final

from multidict import CIMultiDict

from gateway.plugin import HIT, MISS, PASS, STALE, Response, problem
from plugins.cache.compress import as_gzip
from plugins.cache.entry import Entry
from plugins.cache.facts import Facts
from plugins.cache.fitting import fit
from plugins.cache.keys import Place

NAME: Final = "gateway"
ADDED: Final = (b"age", b"x-cache", b"cache-status")

WORDS: Final = {HIT: "HIT", STALE: "STALE", MISS: "MISS", PASS: "BYPASS"}
_NAME: Final = NAME.encode()


def hit(entry: Entry, now: float, place: Place) -> Response:
    """A fresh answer, in gzip if it is stored so.

    The three lines we add change once a second; in between they are bytes already, at its place.
    """
    second = int(now)
    if place.shown_at != second or place.shown_of is not entry.head:
        plan = entry.plan
        head, place.shown_names = as_gzip(entry.head, entry.names) if entry.coding else (entry.head, entry.names)
        place.shown = b"%bAge: %d\r\nX-Cache: HIT\r\nCache-Status: %b%b; hit; ttl=%d\r\n" % (
            head,
            max(0, int(now - plan.born)),
            entry.prior.encode("utf-8", "surrogateescape"),
            _NAME,
            floor(plan.expires - now),
        )
        place.shown_at, place.shown_of = second, entry.head
    return Response.prebuilt(entry.status, place.shown, place.shown_names, entry.body, outcome=HIT, reason=entry.reason)


def told_of(entry: Entry, now: float) -> str:
    """What `Cache-Status` says of a hit: how long it is fresh yet, negative if it is not (RFC 9211, section 2.4)."""
    return f"hit; ttl={floor(entry.plan.expires - now)}"


def served(entry: Entry, facts: Facts, now: float, outcome: str, detail: str) -> Response:
    """Any stored answer, or what of it the client wants.

    Args:
        outcome: `HIT`, `STALE`, or `MISS` for what had to be fetched.
        detail: the parameters of our member in `Cache-Status`.
    """
    head, names, body, status, reason = entry.head, entry.names, entry.body, entry.status, entry.reason
    if (fitted := fit(facts, status, head, body, entry.part)) is not None:
        head, names, body = fitted.head, fitted.names | {*ADDED}, fitted.body
        status, reason = fitted.status, None
    age = max(0, int(now - entry.plan.born))
    ours = f"Age: {age}\r\nX-Cache: {WORDS[outcome]}\r\nCache-Status: {entry.prior}{NAME}; {detail}\r\n"
    return Response.prebuilt(
        status, head + ours.encode("utf-8", "surrogateescape"), names, body, outcome=outcome, reason=reason
    )


def tailored(response: Response, facts: Facts) -> Response:
    """An answer that was fetched, as this client wants it: his conditions were not passed on, nor ranges of a whole."""
    if not isinstance(response.body, bytes):
        return response
    fitted = fit(facts, response.status, response.head(), response.body)
    if fitted is None:
        return response
    return Response.prebuilt(fitted.status, fitted.head, fitted.names, fitted.body, outcome=response.outcome)


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
