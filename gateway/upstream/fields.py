"""Header fields on their way through: which pass, which end here, which the gateway writes itself.

rules
1. Fields that are about one connection only end here, and so does what `Connection` names (RFC 9110, section 7.6.1).
2. `Connection` cannot name away what is meant for the upstream (`END_TO_END`): a client that sends
   `Connection: Accept-Language` would get an answer that a cache in between files under a language nobody spoke.
   Fields of the gateway are written after all removals: naming `X-User-Id` does nothing to the one we send.
3. Names are compared as an upstream might read them: `X_User_Id` counts as `X-User-Id`.
4. Everything else passes as it came: bytes, order, repetitions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Final, NamedTuple

from aiohttp import hdrs
from multidict import CIMultiDictProxy

from gateway.forwarded import parse_ip, strip_port

HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
    }
)
# The body is framed anew on each side; 100 Continue is the server's answer to give.
MAX_REMEMBERED: Final = 256
FRAMING: Final = frozenset({b"content-length", b"transfer-encoding", b"connection"})
# A plugin's changes to these are left out: the first has its own rule, framing is the gateway's business.
NOT_CHANGED: Final = FRAMING | {b"host"}
NOT_SENT: Final = HOP_BY_HOP | FRAMING | {b"expect"}
FORWARDING: Final = frozenset({b"forwarded", b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"via"})
END_TO_END: Final = frozenset(
    {
        b"accept",
        b"accept-charset",
        b"accept-encoding",
        b"accept-language",
        b"age",
        b"authorization",
        b"cache-control",
        b"content-disposition",
        b"content-encoding",
        b"content-language",
        b"content-location",
        b"content-range",
        b"content-type",
        b"cookie",
        b"date",
        b"etag",
        b"expires",
        b"forwarded",
        b"host",
        b"if-match",
        b"if-modified-since",
        b"if-none-match",
        b"if-range",
        b"if-unmodified-since",
        b"last-modified",
        b"location",
        b"origin",
        b"pragma",
        b"range",
        b"referer",
        b"set-cookie",
        b"user-agent",
        b"vary",
        b"via",
        b"www-authenticate",
    }
)
# Statuses whose `Upgrade` speaks to the client itself.
TELLS_UPGRADE: Final = frozenset({101, 426})

# All control characters but the tab: none is legal in a field, and CR or LF would start another one.
_CONTROL: Final = bytes([*range(9), *range(10, 32), 127])
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_NOTHING: Final[frozenset[bytes]] = frozenset()


@lru_cache(maxsize=1024)
def sent_name(name: bytes, trusted: bool) -> bytes | None:
    """What a request's field counts as, in lower case with `-`; None if it is not passed on.

    Args:
        trusted: it comes from a trusted proxy, whose `X-Forwarded-*` beyond those we write are believed too.
    """
    lower = name.lower().replace(b"_", b"-")
    if lower in NOT_SENT or lower.startswith(b"proxy-"):
        return None
    if lower == b"forwarded" or (lower.startswith(b"x-forwarded-") and (not trusted or lower in FORWARDING)):
        return None
    return lower


@lru_cache(maxsize=1024)
def returned_name(name: bytes, tells_upgrade: bool) -> bytes | None:
    """What an answer's field counts as, in lower case; None if it is not passed on."""
    lower = name.lower()
    if lower == b"upgrade" and tells_upgrade:
        return lower
    return None if lower in HOP_BY_HOP or lower in FRAMING else lower


@lru_cache(maxsize=256)
def sent_changes(names: tuple[bytes, ...]) -> tuple[tuple[bytes, ...], bool]:
    """The names in `request.changes` whose lines are sent, and whether forwarding fields are among them."""
    return tuple(name for name in names if name.rstrip() not in NOT_CHANGED), not FORWARDING.isdisjoint(names)


def named_by_connection(headers: CIMultiDictProxy[str]) -> frozenset[bytes]:
    """The fields that `Connection` asks us to remove, beyond those that end here anyway."""
    values = headers.getall(hdrs.CONNECTION, None)
    if values is None:
        return _NOTHING
    value = ",".join(values)
    # What nobody but an attacker sends is not worth remembering: it may be a megabyte long.
    return _options(value) if len(value) <= MAX_REMEMBERED else _options.__wrapped__(value)


@lru_cache(maxsize=256)
def _options(value: str) -> frozenset[bytes]:
    names = {name.strip().lower().encode("utf-8", "surrogateescape") for name in value.split(",")}
    return frozenset(names - {b"close", b"keep-alive", b""} - HOP_BY_HOP - END_TO_END)


# -- out -----------------------------------------------------------------------------------------


class Told(NamedTuple):
    """What a trusted proxy has told about its client, in fields that we continue; empty: nothing."""

    chain: str = ""
    """`X-Forwarded-For`"""
    proto: str = ""
    host: str = ""
    forwarded: str = ""

    @classmethod
    def by(cls, headers: CIMultiDictProxy[str]) -> Told:
        return cls(
            ", ".join(headers.getall("X-Forwarded-For", ())),
            headers.get("X-Forwarded-Proto", ""),
            headers.get("X-Forwarded-Host", ""),
            ", ".join(headers.getall("Forwarded", ())),
        )


NOTHING_TOLD: Final = Told()


@lru_cache(maxsize=1024)
def forwarding_lines(peer: str, scheme: str, host: str, via: str, told: Told = NOTHING_TOLD) -> bytes:
    """`X-Forwarded-For`, `-Proto`, `-Host`, `Forwarded` (RFC 7239) and `Via`, as whole lines.

    Args:
        peer: the address of who is connected to us; empty where there is none (a Unix socket).
        scheme, host: of the request as it reached us.
        via: this gateway's name.
        told: by a trusted proxy; we add to it.
    """
    chain, proto, forwarded_host, forwarded = told
    addresses = [hop for part in chain.split(",") if (hop := part.strip())]
    element = ";".join(
        [f"for={_node(peer)}", *([f"host={_quoted(host)}"] if host else []), f"proto={_quoted(proto or scheme)}"]
    )
    # A proxy that writes X-Forwarded-For only: its chain is told in Forwarded too (RFC 7239, section 7.4).
    before = [forwarded] if forwarded else [f"for={_node(address)}" for address in addresses]
    fields = [
        ("X-Forwarded-For", ", ".join([*addresses, peer or "unknown"])),
        ("X-Forwarded-Proto", proto or scheme),
        ("X-Forwarded-Host", forwarded_host or host),
        ("Forwarded", ", ".join([*before, element])),
        ("Via", f"1.1 {via}"),
    ]
    return "".join(f"{name}: {value}\r\n" for name, value in fields if value).encode("utf-8", "surrogateescape")


def _node(text: str) -> str:
    """An address as RFC 7239 writes it: IPv6 in brackets and quotes."""
    address = parse_ip(strip_port(text))
    if address is None:
        return "unknown"
    return f'"[{address}]"' if address.version == 6 else str(address)


def _quoted(text: str) -> str:
    if _TOKEN.fullmatch(text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def without(lines: bytes, names: Mapping[bytes, bytes | None]) -> bytes:
    """Forwarding lines without those that a plugin has set or removed."""
    kept = [line for line in lines.splitlines(keepends=True) if line.partition(b":")[0].lower() not in names]
    return b"".join(kept)


# -- back ----------------------------------------------------------------------------------------


def response_lines(
    raw_headers: Iterable[tuple[bytes, bytes]], headers: CIMultiDictProxy[str], status: int, via_line: bytes
) -> tuple[bytes, tuple[bytes, ...]]:
    """An answer's lines as they are passed on, and their lower-cased names.

    Raises:
        ValueError: a field has a control character.
    """
    named = named_by_connection(headers)
    tells_upgrade = status in TELLS_UPGRADE
    lines: list[bytes] = []
    names = [b"via"]
    for name, value in raw_headers:
        lower = returned_name(name, tells_upgrade)
        if lower is not None and lower not in named:
            names.append(lower)
            lines += (name, b": ", value, b"\r\n")
    lines.append(via_line)
    head = b"".join(lines)
    # aiohttp's parser is lenient with answers. What is left must be each line's own CR and LF, and nothing else.
    if len(head) - len(head.translate(None, _CONTROL)) != 2 * len(names):
        raise ValueError("a control character in its header")
    return head, tuple(names)
