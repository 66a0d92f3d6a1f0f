"""What of a request's header matters to the cache. Fields it does not know cost one look-up each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from gateway.plugin import Request
from plugins.cache.ranges import Spec, parse
from plugins.cache.syntax import NO_DIRECTIVES, Directives, parse_directives

MAX_KNOWN_NAMES: Final = 1024

NOTHING: Final = 0
CACHE_CONTROL: Final = 1
PRAGMA: Final = 2
CONDITION: Final = 3
PRECONDITION: Final = 4
CREDENTIAL: Final = 5
STEERING: Final = 6
FORWARDED: Final = 7
RANGE: Final = 8
IF_RANGE: Final = 9

_KINDS: Final = {
    b"cache-control": CACHE_CONTROL,
    b"pragma": PRAGMA,
    b"if-none-match": CONDITION,
    b"if-modified-since": CONDITION,
    b"authorization": CREDENTIAL,
    b"range": RANGE,
    b"if-range": IF_RANGE,
    b"if-match": PRECONDITION,
    b"if-unmodified-since": PRECONDITION,
    # Some frameworks take these for the request's target or method: whoever sends them gets an entry of his own.
    b"x-original-url": STEERING,
    b"x-original-uri": STEERING,
    b"x-rewrite-url": STEERING,
    b"x-http-method": STEERING,
    b"x-http-method-override": STEERING,
    b"x-method-override": STEERING,
    b"x-original-method": STEERING,
    b"x-host": STEERING,
    b"x-original-host": STEERING,
    b"x-http-host-override": STEERING,
    b"x-forwarded": STEERING,
    b"x-scheme": STEERING,
    b"x-url-scheme": STEERING,
    b"front-end-https": STEERING,
}
# Whatever has one of these words in its name may tell the upstream whose a request is: those who send different values
# get answers of their own.
_TELLING: Final = frozenset(
    b"account auth authorization authentication bearer cert certificate consumer credential credentials customer dn"
    b" dpop email identity login member oidc password principal role roles session sessionid sid signature subject"
    b" tenant ticket uid user userid username".split()
)
# `X-Api-Key`, `Api-Key`, `X-AccessToken`.
_TELLING_ENDS: Final = (b"key", b"token", b"secret", b"jwt", b"oauth")
# What browsers send whoever uses them.
_NOT_TELLING: Final = frozenset({b"user-agent", b"x-user-agent", b"sec-fetch-user"})
# An address in `Forwarded` (RFC 7239), as trusted proxies write it for each client.
_NODES: Final = re.compile(r'(?:for|by)=(?:"[\[\]0-9A-Fa-f:._-]*"|[\w.-]+)', re.IGNORECASE | re.ASCII)


class Facts:
    """What the header says. The class itself is bounded by the request's header."""

    __slots__ = (
        "asked",
        "conditions",
        "cookies",
        "credentials",
        "if_range",
        "precondition",
        "ranges",
        "steering",
    )

    def __init__(self) -> None:
        self.asked: Directives = NO_DIRECTIVES
        """The request's own `Cache-Control`."""
        self.conditions: Mapping[str, str] = {}
        """`if-none-match` and `if-modified-since`, lower-cased, as far as they are there."""
        self.cookies: tuple[str, ...] = ()
        """`Cookie`, if it counts as a credential: names and values in turn, as in the two below."""
        self.credentials: tuple[str, ...] = ()
        """The other credentials, `Authorization` among them."""
        self.steering: tuple[str, ...] = ()
        """Fields that some upstreams take for the target or method."""
        self.precondition = False
        """A condition stands that only the upstream can judge."""
        self.ranges: tuple[Spec, ...] | None = None
        """What parts are asked for; None: the whole, also where `Range` is to be ignored."""
        self.if_range: str | None = None

    def who(self, identity: str | None) -> tuple[str, ...]:
        """Whom the answer is for: what tells apart requests that must never share one.

        An identity alone would not do: a request can carry somebody's session in a cookie that was foisted on it,
        and somebody else's `Authorization` that the upstream goes by. Other cookies do not split an identity.
        """
        if identity is not None:
            return ("identity", identity, *self.credentials)
        if self.credentials or self.cookies:
            return ("credentials", *self.credentials, *self.cookies)
        return ()


NO_FACTS: Final = Facts()


class FactsReader:
    """Reads the facts of requests.

    Args:
        credentials: the fields that carry credentials, beside `Authorization`.
    """

    def __init__(self, credentials: Iterable[str]) -> None:
        self._kinds = {name.lower().replace("_", "-").encode(): CREDENTIAL for name in credentials} | _KINDS
        self._known: dict[bytes, int] = {}

    def read(self, request: Request) -> Facts:
        """The facts of one request."""
        known = self._known
        found: list[tuple[int, bytes, bytes]] | None = None
        for name, value in request.raw_headers:
            kind = known.get(name)
            if kind is None:
                kind = self._learn(name)
            if kind:
                if found is None:
                    found = []
                found.append((kind, name, value))
        return NO_FACTS if found is None else _facts(found, request.method, "trusted" in request.state)

    def _learn(self, name: bytes) -> int:
        # Some upstreams read `_` as `-`.
        lower = name.lower().replace(b"_", b"-")
        kind = self._kinds.get(lower, NOTHING)
        if kind == NOTHING and (lower == b"forwarded" or lower.startswith(b"x-forwarded-")):
            kind = NOTHING if lower == b"x-forwarded-for" else FORWARDED
        elif kind == NOTHING and lower not in _NOT_TELLING and any(map(_tells, lower.split(b"-"))):
            kind = CREDENTIAL
        if len(self._known) < MAX_KNOWN_NAMES:
            self._known[name] = kind
        return kind


def _tells(word: bytes) -> bool:
    return word in _TELLING or word.endswith(_TELLING_ENDS)


def _facts(found: Sequence[tuple[int, bytes, bytes]], method: str, trusted: bool) -> Facts:
    facts = Facts()
    control: list[str] = []
    pragma = ""
    ranges: list[str] = []
    conditions: dict[str, str] = {}
    for kind, raw, value in found:
        text = value.decode("utf-8", "surrogateescape")
        spelled = raw.lower().decode("utf-8", "surrogateescape")
        name = spelled.replace("_", "-")
        if kind == CACHE_CONTROL:
            control.append(text)
        elif kind == PRAGMA:
            pragma = text
        elif kind == CONDITION:
            conditions[name] = f"{conditions[name]},{text}" if name in conditions else text
        elif kind == PRECONDITION:
            facts.precondition = True
        elif kind == RANGE:
            ranges.append(text)
        elif kind == IF_RANGE:
            facts.if_range = text if facts.if_range is None else f"{facts.if_range}, {text}"
        elif kind == CREDENTIAL:
            if name == "cookie":
                facts.cookies += (name, text)
            else:
                # `X_Api_Key` is `X-Api-Key` to some upstreams only: whoever sends the one is not who sends the other.
                facts.credentials += (spelled, text)
        elif kind == STEERING or trusted:
            # Of the others, `X-Forwarded-*` and `Forwarded` are only passed on for a trusted proxy.
            facts.steering += (spelled, _NODES.sub("", text) if name == "forwarded" else text)
    facts.conditions = conditions
    if ranges and method == "GET":  # RFC 9110, section 14.2: it means nothing for others
        facts.ranges = parse(", ".join(ranges))
    if control:
        facts.asked = parse_directives(",".join(control))
    elif pragma.strip().lower() == "no-cache":
        facts.asked = parse_directives("no-cache")  # RFC 9111, section 5.4
    return facts
