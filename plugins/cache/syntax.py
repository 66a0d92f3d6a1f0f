"""The texts of fields that say something about caching, read as leniently and as strictly as the RFCs want it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final

import http_sf
from multidict import CIMultiDict, MultiMapping

Directives = Mapping[str, str | None]
"""The directives of `Cache-Control` by their lower-cased names. Of a repeated one the first counts; `no-cache` and
`private` that do not name the same fields each time name none, and so count for the whole answer."""

NO_DIRECTIVES: Final[Directives] = {}

# RFC 9111, section 1.2.2: what is too large counts as 2**31.
MAX_SECONDS: Final = 2**31
MAX_VARY: Final = 16
# Longer texts are not remembered: whoever sends them could fill the memory with them.
MAX_KNOWN_TEXT: Final = 200
# Longer ones are not even read: a library in Python does that.
MAX_TARGETED: Final = 2000

# Others choose these texts: every quantifier is possessive, so that none of them takes more than linear time.
_QUOTED: Final = r'"(?:[^"\\]|\\.)*+"'
_PART: Final = re.compile(rf'(?:[^",]++|{_QUOTED})*+', re.DOTALL)
_DIRECTIVE: Final = re.compile(rf"\s*+([!#$%&'*+.^_`|~0-9A-Za-z-]++)(?:=({_QUOTED})\s*+|=([^\"]*+)|\s*+)", re.DOTALL)
_DIGITS: Final = re.compile(r"0*+([0-9]*+)")
_TOKENS: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]++")
# What is left out must not be what forbids something: `no-cache no-store` lacks a comma, `private="x` a quote.
_FORBIDDING: Final = frozenset({"no-store", "no-cache", "private", "max-age"})
_NAMING_FIELDS: Final = frozenset({"no-cache", "private"})

_TIME: Final = r"([0-9]{2}):([0-9]{2}):([0-9]{2})"
_DATE: Final = re.compile(rf"[a-z]{{3}}, ([0-9]{{2}}) ([a-z]{{3}}) ([0-9]{{4}}) {_TIME} GMT", re.IGNORECASE | re.ASCII)
_RFC_850: Final = re.compile(
    rf"[a-z]{{6,9}}, ([0-9]{{2}})-([a-z]{{3}})-([0-9]{{2}}) {_TIME} GMT", re.IGNORECASE | re.ASCII
)
_ASCTIME: Final = re.compile(rf"[a-z]{{3}} ([a-z]{{3}}) ([0-9 ][0-9]) {_TIME} ([0-9]{{4}})", re.IGNORECASE | re.ASCII)
_MONTHS: Final = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]


def joined(fields: CIMultiDict[str], name: str) -> str:
    """All lines of a field as one (RFC 9110, section 5.3)."""
    return ", ".join(fields.getall(name, ()))


def parse_directives(text: str) -> Directives:
    """`Cache-Control` (RFC 9111, section 5.2). What cannot be read is left out, but for words that forbid something."""
    return _known_directives(text) if len(text) <= MAX_KNOWN_TEXT else _directives(text)


def _directives(text: str) -> Directives:
    found: dict[str, str | None] = {}
    for part in _parts(text):
        match = _DIRECTIVE.fullmatch(part)
        if match is not None:
            name, quoted, plain = match.groups()
            value = quoted[1:-1] if quoted is not None else plain and plain.strip()
            if found.setdefault(name := name.lower(), value) != value and name in _NAMING_FIELDS:
                found[name] = None
        else:
            found |= dict.fromkeys(_FORBIDDING.intersection(map(str.lower, _TOKENS.findall(part))))
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


def parse_targeted(text: str) -> Directives | None:
    """A targeted field such as `CDN-Cache-Control`: a dictionary of RFC 9651 (RFC 9213, section 2.1).

    Returns:
        Its directives, those of a wrong type left out; None where it is empty or not valid, and so says nothing.
    """
    if len(text) > MAX_TARGETED:
        return None
    try:
        members: Any = http_sf.parse(text.encode(), tltype="dictionary")
    except (ValueError, UnicodeEncodeError):
        return None
    found: dict[str, str | None] = {}
    for name, (value, _) in members.items():
        if value is True:
            found[name] = None
        elif type(value) is int and value >= 0:
            found[name] = str(value)
        elif type(value) is str and name in ("no-cache", "private"):
            found[name] = value  # the form that names fields
    return found or None


def seconds_of(directives: Directives, name: str) -> int | None:
    """A directive's number of seconds; None where it is not there, 0 where it is not a number (section 4.2.1)."""
    if name not in directives:
        return None
    value = directives[name]
    return _number(value or "")


def names_of(value: str | None) -> frozenset[str]:
    """The fields that `no-cache="a, b"` or `private="a"` names, lower-cased (RFC 9111, section 5.2.2)."""
    return frozenset({name.strip().lower() for name in (value or "").split(",")} - {""})


def parse_age(text: str) -> int:
    """`Age` in seconds (RFC 9111, section 5.1): the first of a list; 0 for what is no number."""
    return _number(text.partition(",")[0].strip())


def _number(text: str) -> int:
    """Seconds, at most `MAX_SECONDS`; 0 for what is no number."""
    match = _DIGITS.fullmatch(text)
    return 0 if match is None else min(int(match[1][:12] or 0), MAX_SECONDS)


def parse_date(text: str) -> float | None:
    """An HTTP date in any of its three formats (RFC 9110, section 5.6.7), in seconds since 1970, or None.

    Only case is not looked at: what else differs from the formats was made by somebody who may mean another time.
    """
    return _known_date(text) if len(text) <= MAX_KNOWN_TEXT else None


@lru_cache(maxsize=1024)
def _known_date(text: str) -> float | None:
    if match := _DATE.fullmatch(text):
        day, month, year, *clock = match.groups()
    elif match := _RFC_850.fullmatch(text):
        day, month, year, *clock = match.groups()
        year = str(_full_year(int(year), datetime.now(UTC).year))
    elif match := _ASCTIME.fullmatch(text):
        month, day, *clock, year = match.groups()
    else:
        return None
    try:
        hour, minute, second = map(int, clock)
        number = _MONTHS.index(month.lower()) + 1
        # A leap second (60) is allowed and is nearly the second before it.
        return datetime(
            int(year), number, int(day), hour, minute, 59 if second == 60 else second, tzinfo=UTC
        ).timestamp()
    except (ValueError, OverflowError):
        return None


def _full_year(digits: int, now: int) -> int:
    """A year of two digits: not more than 50 years from now, else the last one that ended so."""
    year = now - now % 100 + digits
    return year - 100 if year > now + 50 else year


def vary_names(fields: CIMultiDict[str]) -> tuple[str, ...] | None:
    """The lower-cased names in `Vary`, sorted; None where nothing that is stored can ever match (section 4.1)."""
    lines: Sequence[str] | None = fields.getall("Vary", None)
    if lines is None:
        return ()
    names = {name.strip().lower().replace("_", "-") for name in ",".join(lines).split(",")} - {""}
    return None if "*" in names or len(names) > MAX_VARY else tuple(sorted(names))


def tags_of(fields: MultiMapping[str], names: Sequence[str]) -> tuple[str, ...]:
    """The tags in these fields, separated by commas (`Cache-Tag`) or spaces (`Surrogate-Key`)."""
    found = [tag for name in names for line in fields.getall(name, ()) for tag in line.replace(",", " ").split()]
    return tuple(dict.fromkeys(found))
