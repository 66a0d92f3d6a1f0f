"""Request fields as a part of a key: those an answer varies on, and those the configuration names.

Two requests have one key only if the upstream sees the same in all these fields, or what each upstream must read as
the same (RFC 9111, section 4.1): white space around list members; in the fields of content negotiation also case, the
ways to write a weight, and the order of members with the same weight (RFC 9110, sections 12.4.2 and 12.5). A server
that prefers what a client names first, among what it says it likes equally, may so see only one of two orders.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Final
from urllib.parse import unquote

from gateway.plugin import Request

# The gateway writes these itself, from what it knows of the client.
WRITTEN_BY_GATEWAY: Final = frozenset({"forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"})
# Lists of names and weights, without parameters.
_WEIGHTED: Final = frozenset({"accept-charset", "accept-encoding", "accept-language"})
# No lists: a comma in them is a comma, and a second line no member.
_SINGLE: Final = frozenset(
    {"authorization", "content-location", "content-type", "cookie", "date", "from", "host", "max-forwards", "origin"}
    | {"if-modified-since", "if-range", "if-unmodified-since", "proxy-authorization", "range", "referer", "user-agent"}
)
# What plugins add beside a client's field stands under its name with this behind it (`Request.add_header`).
_ADDED: Final = b" "
_WEIGHT: Final = re.compile(r"0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?")
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_COOKIE_VALUE: Final = re.compile(r"[!#-+\--:<-\[\]-~]*")
MAX_KNOWN_VALUE: Final = 200
MAX_MEMBERS: Final = 64


def selecting(request: Request, names: Sequence[str], changes: Mapping[bytes, bytes | None]) -> list[str]:
    """What the upstream sees in some fields, as texts for a key; how many there are of each stands before them.

    A field that is not there differs from an empty one.

    Args:
        names: lower-cased, with `-`.
        changes: the request's changes as they were before the plugins behind the cache saw it.
    """
    found: dict[str, list[str]] = {name: [] for name in names}
    odd: set[str] = set()
    named: set[str] = set()
    for raw, value in request.raw_headers:
        lower = raw.lower()
        # Some upstreams read `_` as `-`.
        name = lower.replace(b"_", b"-").decode("utf-8", "surrogateescape")
        text = value.decode("utf-8", "surrogateescape")
        if name in found and lower.replace(b"_", b"-") not in changes:
            if b"_" in lower:
                # Others do not: which of the lines are one field is not for us to say.
                odd.add(name)
                text = f"{lower.decode('utf-8', 'surrogateescape')}:{text}"
            found[name].append(text)
        if name == "connection":
            named.update(part.strip().lower().replace("_", "-") for part in text.split(","))
    result: list[str] = []
    for name, lines in found.items():
        values = lines if name in odd else _values(name, lines)
        key = name.encode("utf-8", "surrogateescape")
        written = [changes.get(key), changes.get(key + _ADDED)]
        more = ["" if line is None else line.decode("utf-8", "surrogateescape") for line in written]
        if name in named:
            # The gateway does not pass it on, or does all the same: both differ from a request that names nothing.
            more.append("named by Connection")
        if name in WRITTEN_BY_GATEWAY:
            more += (request.client, request.scheme, request.host, str(request.state.get("peer")))
        result += (f"{'odd ' if name in odd else ''}{len(values)}, {len(more)}", *values, *more)
    return result


def _values(name: str, lines: list[str]) -> list[str]:
    """A field's lines, in one text where that says the same (RFC 9110, section 5.3)."""
    stripped = [line.strip(" \t") for line in lines]
    if not lines or name in _SINGLE:
        return stripped
    return [normalised(name, ", ".join(stripped))]


def normalised(name: str, value: str) -> str:
    """The same text for values that mean the same in this field.

    Args:
        name: lower-cased.
        value: of all its lines, joined by commas.
    """
    if '"' in value:
        # A comma may stand inside the quotes.
        return value
    if name != "accept" and name not in _WEIGHTED:
        return ", ".join([part.strip(" \t") for part in value.split(",")])
    return (_negotiated if len(value) <= MAX_KNOWN_VALUE else _negotiated.__wrapped__)(name == "accept", value)


@lru_cache(maxsize=1024)
def _negotiated(with_parameters: bool, value: str) -> str:
    parts = [part for part in [part.strip(" \t") for part in value.split(",")] if part]
    members = [_member(part, with_parameters) for part in parts] if len(parts) <= MAX_MEMBERS else [None]
    if None in members:
        # Not what the RFC describes: who knows what an upstream makes of it.
        return "as it is: " + value
    kept = sorted({member for member in members if member is not None}, key=lambda member: (-member[0], member[1]))
    return ", ".join([name if weight == 1000 else f"{name};q={weight}" for weight, name in kept])


def _member(part: str, with_parameters: bool) -> tuple[int, str] | None:
    """The weight in thousandths and the rest of a member; None where it is not well-formed."""
    name, *parameters = [piece.strip(" \t") for piece in part.split(";")]
    weight = 1000
    kept = [name.lower()]
    for number, parameter in enumerate(parameters, 1):
        key, equals, text = parameter.partition("=")
        if not equals or not _TOKEN.fullmatch(key) or not _TOKEN.fullmatch(text):
            return None
        if key.lower() == "q":
            if number != len(parameters) or not _WEIGHT.fullmatch(text):
                return None
            weight = round(float(text) * 1000)
        elif with_parameters:
            kept.append(f"{key.lower()}={text}")  # what its case means is up to the media type
        else:
            return None
    media_type, slash, subtype = name.partition("/")
    if slash != ("/" if with_parameters else "") or not _TOKEN.fullmatch(media_type):
        return None
    if with_parameters and not _TOKEN.fullmatch(subtype):
        return None
    return weight, ";".join(kept)


# -- cookies ---------------------------------------------------------------------------------------


class CookieNames:
    """Reads the cookies that are a part of the key.

    Args:
        names: as they are sent; case counts.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        # A cookie of this name, for whatever server: PHP reads `a.b` as `a_b`, some decode names, some split at commas.
        self._seen = [
            re.compile(
                r"(?<![a-z0-9!#$&'*^`|~._-])"
                + "".join(["[._ +]" if letter in "._" else re.escape(letter) for letter in name.lower()])
                + r"\s*[=\[]"
            )
            for name in names
        ]

    def read(self, request: Request) -> list[str]:
        """The values as texts for a key. Where another server might find other values: all there is."""
        if not self.names:
            return []
        change = request.changes.get(b"cookie")
        if b"cookie" in request.changes:
            lines = [] if change is None else [change.decode("utf-8", "surrogateescape").partition(":")[2].strip()]
        else:
            lines = [
                value.decode("utf-8", "surrogateescape")
                for name, value in request.raw_headers
                if name.lower() == b"cookie"
            ]
        pairs = [pair.strip(" \t").partition("=") for line in lines for pair in line.split(";")]
        text = unquote("; ".join(lines)).lower()
        result: list[str] = []
        for name, seen in zip(self.names, self._seen, strict=True):
            values = [value for key, equals, value in pairs if equals and key == name]
            if len(seen.findall(text)) != len(values) or not all(map(_COOKIE_VALUE.fullmatch, values)):
                result += (f"all {len(lines)}", *lines)
            else:
                result += (str(len(values)), *values)
        return result
