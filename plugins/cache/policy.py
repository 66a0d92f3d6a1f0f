"""RFC 9111 as pure functions of header fields, a stored answer's times and the clock. No I/O.

All times are seconds since 1970, all spans seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from multidict import CIMultiDict

from plugins.cache.early import window
from plugins.cache.syntax import (
    MAX_SECONDS,
    NO_DIRECTIVES,
    Directives,
    joined,
    names_of,
    parse_age,
    parse_date,
    parse_directives,
    parse_targeted,
    seconds_of,
    vary_names,
)

MAX_LIFE: Final = 24 * 3600.0
"""An answer is kept for at most this long, whatever the upstream says: a year of `max-age` is asked for once a day."""

# RFC 9110, section 15.1: what may be kept although the upstream does not say for how long.
HEURISTIC: Final = frozenset({200, 203, 204, 206, 300, 301, 308, 404, 405, 410, 414, 501})
# For the configuration's `ttl`, errors are not among them: `ttl_by_status` names those.
BY_DEFAULT: Final = frozenset({200, 203, 204, 300, 301, 308})
# A 304 is about another answer, a 416 about one request's `Range`; a part (206) is judged like the whole (see `parts`).
NEVER: Final = frozenset({206, 304, 416})
# Statuses whose caching rules are known here (RFC 9111, section 5.2.2.3).
UNDERSTOOD: Final = frozenset({200, 203, 204, 206, 300, 301, 302, 303, 307, 308, 404, 405, 410, 414, 501})

# Section 4.2.4: with these a stale answer is not served; `s-maxage` leaves the upstream its own exceptions.
NO_STALE: Final = frozenset({"must-revalidate", "proxy-revalidate"})
STRICT: Final = NO_STALE | {"s-maxage"}
# Section 3.1: these are about one hop.
OF_A_PROXY: Final = frozenset({"proxy-authenticate", "proxy-authentication-info", "proxy-authorization"})
# Section 3.5: with one of these an answer to a request with a credential may be given to others.
FOR_ALL: Final = frozenset({"public", "s-maxage", "must-revalidate"})


@dataclass(frozen=True, slots=True)
class Rules:
    """What the configuration says; see `config.CacheConfig` for the meaning of each."""

    ttl: float = 0.0
    ttl_by_status: Mapping[int, float] = field(default_factory=dict)
    ttl_by_content_type: Mapping[str, float] = field(default_factory=dict)
    override: bool = False
    jitter: float = 0.0
    heuristic: float = 0.0
    keep: float = 0.0
    stale_while_revalidate: float = 0.0
    stale_if_error: float = 0.0
    targeted: tuple[str, ...] = ()
    set_cookie: str = "refuse"
    early: float = 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """How an answer is to be kept."""

    born: float
    """When it would have been made if its `Age` was 0 then: the clock minus this is its age (section 4.2.3)."""
    refresh_from: float
    """From then on a fresh one may be fetched early; it is fresh still."""
    expires: float
    """It is fresh before this."""
    stale_until: float
    """It may be served stale while a fresh one is fetched, before this (RFC 5861, section 3)."""
    error_until: float
    """It may be served in place of an error, before this (RFC 5861, section 4)."""
    kept_until: float
    """It may be revalidated before this."""
    strict: bool
    """A client cannot ask for it to be served stale."""
    vary: tuple[str, ...]
    """The lower-cased request fields it depends on, sorted."""

    @property
    def ends(self) -> float:
        """It is of no use from then on."""
        return max(self.expires, self.stale_until, self.error_until, self.kept_until)

    @property
    def never_fresh(self) -> bool:
        """It is only there to be revalidated, by each request for itself: what is fetched for one is not for others."""
        return self.expires <= self.born


def only_once(now: float, vary: tuple[str, ...]) -> Plan:
    """For an answer that those who wait for it now may have, and nobody after them."""
    return Plan(now, now, now, now, now, now, True, vary)


def ended(kept: Plan, now: float) -> Plan:
    """The plan of an answer that is known to be out of date: it can still be revalidated."""
    return replace(
        kept,
        refresh_from=min(kept.refresh_from, now),
        expires=min(kept.expires, now),
        stale_until=min(kept.stale_until, now),
        error_until=min(kept.error_until, now),
    )


# -- what the answer says --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Control:
    """What of an answer's header counts."""

    directives: Directives
    expires: str | None
    """`Expires`, where it counts."""


def control(fields: CIMultiDict[str], rules: Rules) -> Control:
    """The directives that count: those of the first targeted field that is there and valid, else `Cache-Control`.

    RFC 9213, section 2.2: next to a targeted field `Cache-Control` and `Expires` say nothing.
    """
    said = parse_directives(joined(fields, "Cache-Control"))
    if rules.override:
        # The upstream's word about time does not count; that an answer is one client's alone does.
        return Control({"private": said["private"]} if "private" in said else NO_DIRECTIVES, None)
    for name in rules.targeted:
        if name in fields and (directives := parse_targeted(joined(fields, name))) is not None:
            return Control(directives, None)
    return Control(said, joined(fields, "Expires") if "Expires" in fields else None)


def left_out(directives: Directives, rules: Rules, *, shared: bool) -> frozenset[str]:
    """The lower-cased fields that are not stored with the answer (sections 3.1, 5.2.2.4 and 5.2.2.7)."""
    names = OF_A_PROXY | names_of(directives.get("no-cache"))
    if shared:
        names |= names_of(directives.get("private"))
    return names | {"set-cookie", "set-cookie2"} if rules.set_cookie == "strip" else names


def is_common(fields: CIMultiDict[str], rules: Rules) -> bool:
    """Whether the upstream says that the answer is the same for all, whoever asks (RFC 9111, section 3.5).

    `private` and cookies say something else, whatever stands beside them.
    """
    directives = control(fields, rules).directives
    if "private" in directives or "Set-Cookie" in fields:
        return False
    return "public" in directives or "s-maxage" in directives


# -- may it be stored, and for how long ------------------------------------------------------------


def plan(
    status: int,
    fields: CIMultiDict[str],
    *,
    shared: bool,
    authorized: bool,
    rules: Rules,
    sent: float,
    received: float,
    chance: float = 0.0,
) -> Plan | str:
    """Whether and how the answer to a GET may be kept (RFC 9111, section 3).

    Args:
        fields: the answer's header fields.
        shared: what is kept will be given to anybody; otherwise to one identity only.
        authorized: the request carried a credential that is no cookie, or speaks for somebody.
        rules: for what the upstream does not say.
        sent, received: when the request left and when the answer's header was there.
        chance: between 0 and 1, for the jitter.

    Returns:
        The plan, or in one word why it is not kept.
    """
    said = control(fields, rules)
    directives = said.directives
    if refusal := _refusal(status, fields, directives, shared=shared, authorized=authorized, rules=rules):
        return refusal
    vary = vary_names(fields)
    if vary is None:
        return "vary"
    found = freshness_lifetime(status, fields, said, rules, received, chance)
    born = received - initial_age(fields, sent, received)
    last = received + MAX_LIFE
    always = _always(directives)
    expires = born if always else min(born + (found or 0.0), last)
    validator = "ETag" in fields or "Last-Modified" in fields
    windows = {**directives, "must-revalidate": None} if always else directives
    while_revalidating = _window(windows, "stale-while-revalidate", rules.stale_while_revalidate)
    if expires + while_revalidating <= received:
        expires = born  # it is over before anybody could use it: see `never_fresh`
    made = Plan(
        born=born,
        refresh_from=window(received, expires, received - sent, rules.early) if expires > received else expires,
        expires=expires,
        stale_until=min(expires + while_revalidating, last),
        error_until=min(expires + _window(windows, "stale-if-error", rules.stale_if_error), last),
        # What the upstream says nothing about is not kept for that: nobody has asked for it to be stored.
        kept_until=min(max(expires, received) + rules.keep, last) if validator and found is not None else expires,
        strict=always or not STRICT.isdisjoint(directives),
        vary=vary,
    )
    if found is None or made.ends <= received:
        return "no-cache" if always else "not-fresh"
    return made


def _always(directives: Directives) -> bool:
    """Whether it must be validated before each use: `no-cache` that names no field (section 5.2.2.4)."""
    return "no-cache" in directives and not names_of(directives["no-cache"])


def _window(directives: Directives, name: str, default: float) -> float:
    """How long it may be served stale: the upstream's word, then the configuration's (sections 4.2.4, 5.2.2.10)."""
    if not NO_STALE.isdisjoint(directives):
        return 0.0
    seconds = seconds_of(directives, name)
    if seconds is not None:
        return seconds
    return 0.0 if "s-maxage" in directives else default


def _refusal(
    status: int, fields: CIMultiDict[str], directives: Directives, *, shared: bool, authorized: bool, rules: Rules
) -> str | None:
    if status < 200 or status in NEVER:
        return "status"
    if "must-understand" in directives:
        # In its presence `no-store` is for caches that do not know the status (section 5.2.2.3).
        if status not in UNDERSTOOD:
            return "must-understand"
    elif "no-store" in directives:
        return "no-store"
    return _personal(fields, directives, shared=shared, authorized=authorized, rules=rules)


def _personal(
    fields: CIMultiDict[str], directives: Directives, *, shared: bool, authorized: bool, rules: Rules
) -> str | None:
    """Why an answer is for the one who asked only, or None."""
    if shared and "private" in directives and not names_of(directives["private"]):
        return "private"
    if rules.set_cookie == "refuse" and "Set-Cookie" in fields:
        # Not if the upstream names the field: then all but that is for others.
        named = names_of(directives.get("no-cache")) | (names_of(directives.get("private")) if shared else frozenset())
        if "set-cookie" not in named:
            return "set-cookie"
    if shared and authorized and FOR_ALL.isdisjoint(directives):
        return "authorization"
    return None


def shared_error(fields: CIMultiDict[str], *, shared: bool, authorized: bool, rules: Rules) -> tuple[str, ...] | None:
    """The fields that an error varies on, if all who waited for the fetch may have it; else None."""
    directives = control(fields, rules).directives
    if _personal(fields, directives, shared=shared, authorized=authorized, rules=rules):
        return None
    return vary_names(fields)


def freshness_lifetime(
    status: int, fields: CIMultiDict[str], said: Control, rules: Rules, received: float, chance: float = 0.0
) -> float | None:
    """For how long it is fresh, counted from its birth (section 4.2.1); None where nobody says."""
    directives = said.directives
    for name in ("s-maxage", "max-age"):
        seconds = seconds_of(directives, name)
        if seconds is not None:
            return seconds
    if said.expires is not None:
        until = parse_date(said.expires)
        if until is None:
            return 0.0  # such as "0": section 5.3
        date = parse_date(fields.get("Date", ""))
        return max(0.0, until - (received if date is None else date))
    configured = _configured(status, fields.get("Content-Type", ""), rules)
    if configured:
        # What was fetched at the same time does not end at the same time.
        return configured * (1.0 - rules.jitter * chance)
    if _always(directives):
        return 0.0
    return _heuristic(status, fields, directives, rules, received)


def _configured(status: int, content_type: str, rules: Rules) -> float:
    if status in rules.ttl_by_status:
        return rules.ttl_by_status[status]
    if status not in BY_DEFAULT:
        return 0.0
    kind = content_type.partition(";")[0].strip().lower()
    for pattern, ttl in rules.ttl_by_content_type.items():
        if kind == pattern or (pattern.endswith("/*") and kind.startswith(pattern[:-1])):
            return ttl
    return rules.ttl


def _heuristic(
    status: int, fields: CIMultiDict[str], directives: Directives, rules: Rules, received: float
) -> float | None:
    """A part of the time for which it has not changed (section 4.2.2)."""
    if not rules.heuristic or (status not in HEURISTIC and "public" not in directives):
        return None
    modified = parse_date(fields.get("Last-Modified", ""))
    date = parse_date(fields.get("Date", ""))
    since = None if modified is None else (received if date is None else date) - modified
    return since * rules.heuristic if since is not None and since > 0 else None


def initial_age(fields: CIMultiDict[str], sent: float, received: float) -> float:
    """`corrected_initial_age` of section 4.2.3; the time on the way counts where `Age` shows a cache in between."""
    date = parse_date(fields.get("Date", ""))
    # `Date` has whole seconds: what is left of the current one is no age.
    apparent = 0.0 if date is None else max(0.0, int(received) - date)
    value = parse_age(fields.get("Age", ""))
    return max(apparent, value + max(0.0, received - sent) if value else 0.0)


# -- may it be used --------------------------------------------------------------------------------


FRESH: Final = "fresh"
STALE: Final = "stale"
"""It may be served now, and a fresh one is to be fetched."""
RELOAD: Final = "reload"
"""The client wants one that is newer than what would be fresh for others."""
EXPIRED: Final = "expired"


def judge(kept: Plan, asked: Directives, now: float) -> str:
    """What a stored answer is good for: `FRESH`, `STALE`, `RELOAD` or `EXPIRED` (sections 4.2 and 5.2.1).

    Args:
        kept: its times.
        asked: the request's directives.
    """
    age = now - kept.born
    if "no-cache" in asked:
        return RELOAD
    max_age, min_fresh = seconds_of(asked, "max-age"), seconds_of(asked, "min-fresh")
    if now < kept.expires:
        picky = (max_age is not None and age > max_age) or (min_fresh is not None and kept.expires - now < min_fresh)
        return RELOAD if picky else FRESH
    # Section 5.2.1.1: who says how old it may be wants nothing stale, unless he says that too.
    if min_fresh is not None or (max_age is not None and (age > max_age or "max-stale" not in asked)):
        return EXPIRED
    if now < kept.stale_until:
        return STALE
    if "max-stale" in asked and not kept.strict:
        bound = MAX_SECONDS if asked["max-stale"] is None else seconds_of(asked, "max-stale")
        if now - kept.expires <= (bound or 0):
            return STALE
    return EXPIRED
