"""RFC 9111 as pure functions of header fields, a stored answer's times and the clock. No I/O.

All times are seconds since 1970, all spans seconds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_tz
from functools import lru_cache
from typing import Final

from multidict import CIMultiDict

Directives = Mapping[str, str | None]
"""The directives of `Cache-Control` by their lower-cased names; of a repeated one the first counts."""

NO_DIRECTIVES: Final[Directives] = {}

MAX_LIFE: Final = 24 * 3600.0
"""An answer is kept for at most this long, whatever the upstream says: a year of `max-age` is asked for once a day."""

# RFC 9111, section 1.2.2: what is too large counts as 2**31.
MAX_SECONDS: Final = 2**31
MAX_VARY: Final = 16
# Longer texts are not remembered: whoever sends them could fill the memory with them.
MAX_KNOWN_TEXT: Final = 200

# RFC 9110, section 15: what may be kept although the upstream says nothing, without the errors among them, which are
# kept only if `ttl_by_status` names them.
BY_DEFAULT: Final = frozenset({200, 203, 204, 300, 301, 308})
# These need more than a cache that stores whole answers.
NEVER: Final = frozenset({206, 304, 416})
# Statuses whose caching rules are known here (RFC 9111, section 5.2.2.3).
UNDERSTOOD: Final = frozenset({200, 203, 204, 300, 301, 302, 303, 307, 308, 404, 405, 410, 414, 501})

# Section 4.2.4: with these a stale answer is not served; `s-maxage` leaves the upstream its own exceptions.
NO_STALE: Final = frozenset({"must-revalidate", "proxy-revalidate"})
STRICT: Final = NO_STALE | {"s-maxage"}

# Clients choose these texts: every quantifier is possessive, so that none of them takes more than linear time.
_QUOTED: Final = r'"(?:[^"\\]|\\.)*+"'
_PART: Final = re.compile(rf'(?:[^",]++|{_QUOTED})*+', re.DOTALL)
_DIRECTIVE: Final = re.compile(rf"\s*+([!#$%&'*+.^_`|~0-9A-Za-z-]++)(?:=({_QUOTED})\s*+|=([^\"]*+)|\s*+)", re.DOTALL)
_ETAG: Final = re.compile(r'(?:W/)?("[^"]*")')
_DIGITS: Final = re.compile(r"[0-9]+")


def parse_directives(text: str) -> Directives:
    """`Cache-Control` (RFC 9111, section 5.2). What cannot be read is left out."""
    return _known_directives(text) if len(text) <= MAX_KNOWN_TEXT else _directives(text)


def _directives(text: str) -> Directives:
    found: dict[str, str | None] = {}
    for part in _parts(text):
        match = _DIRECTIVE.fullmatch(part)
        if match is not None:
            name, quoted, plain = match.groups()
            value = quoted[1:-1] if quoted is not None else plain
            found.setdefault(name.lower(), value if quoted is not None or value is None else value.strip())
    return found


_known_directives = lru_cache(maxsize=512)(_directives)


def _parts(text: str) -> list[str]:
    """What stands between commas, but for those in quotes."""
    if '"' not in text:
        return text.split(",")
    parts: list[str] = []
    start = 0
    while start < len(text):
        match = _PART.match(text, start)
        assert match is not None
        end = match.end()
        if text[end : end + 1] == '"':
            break  # it is never closed: from here on quotes say nothing
        parts.append(match[0])
        start = end + 1
    return parts + text[start:].split(",")


def seconds_of(directives: Directives, name: str) -> int | None:
    """A directive's number of seconds; None where it is not there, 0 where it is not a number (section 4.2.1)."""
    if name not in directives:
        return None
    value = directives[name]
    if value is None or not (value.isascii() and _DIGITS.fullmatch(value)):
        return 0
    return min(int(value[:12]), MAX_SECONDS)


def parse_date(text: str) -> float | None:
    """An HTTP date in any of its three formats (RFC 9110, section 5.6.7), or None."""
    return _known_date(text) if len(text) <= MAX_KNOWN_TEXT else None


@lru_cache(maxsize=1024)
def _known_date(text: str) -> float | None:
    try:
        parts = parsedate_tz(text)
        if parts is None or parts[9]:
            return None
        return datetime(*parts[:6], tzinfo=UTC).timestamp()
    except (ValueError, OverflowError, TypeError, IndexError):
        return None


# -- may it be stored, and for how long ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rules:
    """What the configuration says about answers that say nothing."""

    ttl: float = 0.0
    ttl_by_status: Mapping[int, float] = field(default_factory=dict)
    stale_while_revalidate: float = 0.0
    stale_if_error: float = 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """How an answer is to be kept."""

    born: float
    """When it would have been made if its `Age` was 0 then: the clock minus this is its age (section 4.2.3)."""
    expires: float
    """It is fresh before this."""
    stale_until: float
    """It may be served stale while a fresh one is fetched, before this (RFC 5861, section 3)."""
    error_until: float
    """It may be served in place of an error, before this (RFC 5861, section 4)."""
    strict: bool
    """A client cannot ask for it to be served stale."""
    vary: tuple[str, ...]
    """The lower-cased request fields it depends on, sorted."""

    @property
    def ends(self) -> float:
        """It is of no use from then on."""
        return max(self.expires, self.stale_until, self.error_until)


def plan(
    status: int,
    fields: CIMultiDict[str],
    *,
    shared: bool,
    authorized: bool,
    rules: Rules,
    sent: float,
    received: float,
) -> Plan | str:
    """Whether and how the answer to a GET may be kept (RFC 9111, section 3).

    Args:
        fields: the answer's header fields.
        shared: what is kept will be given to anybody; otherwise to one identity only.
        authorized: the request carried a credential that is no cookie, or speaks for somebody.
        rules: for what the upstream does not say.
        sent, received: when the request left and when the answer's header was there.

    Returns:
        The plan, or in one word why it is not kept.
    """
    directives = parse_directives(",".join(fields.getall("Cache-Control", ())))
    if refusal := _refusal(status, fields, directives, shared=shared, authorized=authorized, rules=rules):
        return refusal
    vary = vary_names(fields)
    if vary is None:
        return "vary"
    lifetime = freshness_lifetime(status, fields, directives, rules, received)
    born = received - initial_age(fields, sent, received)
    last = received + MAX_LIFE
    expires = min(born + lifetime, last)
    made = Plan(
        born=born,
        expires=expires,
        stale_until=min(expires + _window(directives, "stale-while-revalidate", rules.stale_while_revalidate), last),
        error_until=min(expires + _window(directives, "stale-if-error", rules.stale_if_error), last),
        strict=not STRICT.isdisjoint(directives),
        vary=vary,
    )
    return made if made.ends > received else "not-fresh"


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
    if status < 200 or status in NEVER or (status >= 500 and status not in rules.ttl_by_status):
        return "status"
    if "must-understand" in directives:
        # In its presence `no-store` is for caches that do not know the status (section 5.2.2.3).
        if status not in UNDERSTOOD:
            return "must-understand"
    elif "no-store" in directives:
        return "no-store"
    if "no-cache" in directives:
        return "no-cache"
    return _personal(fields, directives, shared=shared, authorized=authorized)


def _personal(fields: CIMultiDict[str], directives: Directives, *, shared: bool, authorized: bool) -> str | None:
    """Why an answer is for the one who asked only, or None."""
    if shared and "private" in directives:
        return "private"
    if "Set-Cookie" in fields:
        return "set-cookie"
    if shared and authorized and {"public", "s-maxage", "must-revalidate"}.isdisjoint(directives):
        return "authorization"
    return None


def shared_error(fields: CIMultiDict[str], *, shared: bool, authorized: bool) -> tuple[str, ...] | None:
    """The fields that an error varies on, if all who waited for the fetch may have it; else None."""
    directives = parse_directives(",".join(fields.getall("Cache-Control", ())))
    if _personal(fields, directives, shared=shared, authorized=authorized):
        return None
    return vary_names(fields)


def freshness_lifetime(
    status: int, fields: CIMultiDict[str], directives: Directives, rules: Rules, received: float
) -> float:
    """For how long it is fresh, counted from its birth (section 4.2.1)."""
    for name in ("s-maxage", "max-age"):
        seconds = seconds_of(directives, name)
        if seconds is not None:
            return seconds
    expires = fields.get("Expires")
    if expires is not None:
        until = parse_date(expires)
        if until is None:
            return 0.0  # such as "0": section 5.3
        date = parse_date(fields.get("Date", ""))
        return max(0.0, until - (received if date is None else date))
    if status in rules.ttl_by_status:
        return rules.ttl_by_status[status]
    return rules.ttl if status in BY_DEFAULT else 0.0


def initial_age(fields: CIMultiDict[str], sent: float, received: float) -> float:
    """`corrected_initial_age` of section 4.2.3; the time on the way counts where `Age` shows a cache in between."""
    date = parse_date(fields.get("Date", ""))
    # `Date` has whole seconds: what is left of the current one is no age.
    apparent = 0.0 if date is None else max(0.0, int(received) - date)
    text = fields.get("Age", "").partition(",")[0].strip()
    value = min(int(text[:12]), MAX_SECONDS) if text.isascii() and _DIGITS.fullmatch(text) else 0
    return max(apparent, value + max(0.0, received - sent) if value else 0.0)


def vary_names(fields: CIMultiDict[str]) -> tuple[str, ...] | None:
    """The lower-cased names in `Vary`, sorted; None where nothing that is stored can ever match (section 4.1)."""
    lines = fields.getall("Vary", None)
    if lines is None:
        return ()
    names = {name.strip().lower().replace("_", "-") for name in ",".join(lines).split(",")} - {""}
    return None if "*" in names or len(names) > MAX_VARY else tuple(sorted(names))


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
    if min_fresh is not None or (max_age is not None and age > max_age):
        return EXPIRED
    if now < kept.stale_until:
        return STALE
    if "max-stale" in asked and not kept.strict:
        bound = MAX_SECONDS if asked["max-stale"] is None else seconds_of(asked, "max-stale")
        if now - kept.expires <= (bound or 0):
            return STALE
    return EXPIRED


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
        own = _ETAG.fullmatch(fields.get("ETag", "").strip())
        return own is not None and own[1] in _ETAG.findall(wanted)
    since = parse_date(conditions.get("if-modified-since", ""))
    modified = parse_date(fields.get("Last-Modified", "") or fields.get("Date", ""))
    return since is not None and modified is not None and modified <= since


def tags_of(fields: CIMultiDict[str], names: tuple[str, ...]) -> tuple[str, ...]:
    """The tags in these fields, separated by commas (`Cache-Tag`) or spaces (`Surrogate-Key`)."""
    found = [tag for name in names for line in fields.getall(name, ()) for tag in line.replace(",", " ").split()]
    return tuple(dict.fromkeys(found))
