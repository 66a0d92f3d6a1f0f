"""Whom a request is counted for, as a part of a key's name.

Each part is bounded in length, holds none of the characters that structure a key, and shows no secret: tokens and
header values are hashed. A request without the thing it is to be told apart by counts for its IP address.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from hashlib import sha256
from ipaddress import IPv6Address, ip_address
from typing import Any, Final
from urllib.parse import quote

from gateway.plugin import Request

Who = Callable[[Request, str | None], str]
"""Of a request and its user."""

KINDS: Final = ("ip", "route", "user", "token")
MAX_KNOWN: Final = 10_000
MAX_LENGTH: Final = 80

_HEADER: Final = re.compile(r"header:[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}")


def parse_by(value: Any) -> Any:
    """One kind or a list of them, as a tuple.

    Raises:
        ValueError: a kind that is not known, or one that stands there twice.
    """
    kinds = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list | tuple) else ()
    if not kinds or not all(isinstance(kind, str) and (kind in KINDS or _HEADER.fullmatch(kind)) for kind in kinds):
        raise ValueError('expected "ip", "route", "user", "token", "header:NAME" or a list of these')
    if len(set(kinds)) < len(kinds):
        raise ValueError("expected each of them once")
    return kinds


def who_by(kinds: Sequence[str], ipv6_prefix: int) -> Who:
    """A function that names whom a request is counted for; equal names are counted together."""
    parts = [_part(kind, ipv6_prefix) for kind in kinds]
    if len(parts) == 1:
        return parts[0]
    return lambda request, user: "|".join([part(request, user) for part in parts])


def _part(kind: str, ipv6_prefix: int) -> Who:
    # The values' own kinds stand before them, so that no user can be called like somebody's address.
    if kind == "ip":
        return lambda request, user: network(request.client, ipv6_prefix)
    if kind == "route":
        return lambda request, user: "route:" + encoded(request.route.name)
    if kind == "user":
        return lambda request, user: "user:" + encoded(user) if user else network(request.client, ipv6_prefix)
    if kind == "token":
        return lambda request, user: (
            "token:" + hashed(token) if (token := request.bearer()) else network(request.client, ipv6_prefix)
        )
    name = kind.removeprefix("header:")
    label = encoded(name.lower())
    return lambda request, user: (
        f"{label}:{hashed(value)}" if (value := request.headers.get(name)) else network(request.client, ipv6_prefix)
    )


@lru_cache(MAX_KNOWN)
def network(client: str, ipv6_prefix: int) -> str:
    """A client's address; of an IPv6 one the network, as one customer has at least 2**64 addresses."""
    try:
        address = ip_address(client)
    except ValueError:
        return "peer:" + encoded(client)
    if not isinstance(address, IPv6Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    host_bits = 128 - ipv6_prefix
    return f"{IPv6Address(int(address) >> host_bits << host_bits)}/{ipv6_prefix}"


@lru_cache(MAX_KNOWN)
def encoded(text: str) -> str:
    """A text, readable, inside a key's name; one that is too long by its hash."""
    safe = quote(text, safe="/:@", errors="surrogatepass")
    # `#` stands in no quoted text: a hash cannot be taken for somebody's name.
    return safe if len(safe) <= MAX_LENGTH else "#" + hashed(text)


def hashed(text: str) -> str:
    """128 bits of the text's SHA-256."""
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
