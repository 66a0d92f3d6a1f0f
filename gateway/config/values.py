"""What people write in a value: sizes, times, addresses, URLs, paths.

A message says what was expected and never repeats the value: it may hold a secret, and what was found is told
by `gateway.config.errors`, which knows what must not be shown.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(B|KB|MB|GB|KiB|MiB|GiB)?")
_SIZE_UNITS: Final = {
    None: 1,
    "B": 1,
    "KB": 1000,
    "MB": 1000**2,
    "GB": 1000**3,
    "KiB": 1024,
    "MiB": 1024**2,
    "GiB": 1024**3,
}
_SPAN: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?")
_SPAN_UNITS: Final = {None: 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_LABELS: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*")
_METHOD: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def parse_size(value: Any) -> Any:
    """`"10 MiB"` or a number of bytes, as bytes."""
    if isinstance(value, str | bool):
        match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
        if match is None:
            raise ValueError('expected a size such as 65536, "64 KiB" or "10 MiB"')
        return int(float(match[1]) * _SIZE_UNITS[match[2]])
    return value


def parse_span(value: Any) -> Any:
    """`"250ms"`, `"5s"`, `"10m"`, `"24h"` or a number of seconds, as seconds."""
    if isinstance(value, str | bool):
        match = _SPAN.fullmatch(value.strip()) if isinstance(value, str) else None
        if match is None:
            raise ValueError('expected a time such as 2.5, "250ms", "30s", "10m" or "24h"')
        return float(match[1]) * _SPAN_UNITS[match[2]]
    return value


def _address(value: str) -> str:
    host, colon, port = value.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise ValueError('expected HOST:PORT, such as "127.0.0.1:8080", "[::1]:8080" or ":8080" for all addresses')
    if host.count(":") and not (host.startswith("[") and host.endswith("]")):
        raise ValueError('an IPv6 address stands in brackets, such as "[::1]:8080"')
    return value


def _http_url(value: str) -> str:
    expected = 'expected a URL such as "http://127.0.0.1:9000"'
    try:
        parts = urlsplit(value)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # its text would repeat a part of the URL
        raise ValueError(expected) from None
    if not usable:
        raise ValueError(expected if "://" in value else f'{expected}, with "http://" before it')
    if parts.query or parts.fragment or parts.username is not None:
        raise ValueError("an upstream's URL has no user, query or fragment")
    return value


def _redis_url(value: str) -> str:
    from gateway.store.url import parse  # not above: it brings all of redis-py, and few values are URLs of Redis

    if value != "embedded":
        parse(value)
    return value


def _network(value: str) -> str:
    try:
        ipaddress.ip_network(value, strict=False)
    except ValueError:
        raise ValueError('expected an address or network such as "10.0.0.0/8" or "::1"') from None
    return value


def _upstream_host(value: str) -> str:
    name, colon, port = value.rpartition(":")
    if value not in ("keep", "upstream") and not _LABELS.fullmatch(name if colon and port.isdigit() else value):
        raise ValueError('expected "keep", "upstream" or a host name such as "api.example.com"')
    return value


def _methods(values: tuple[str, ...]) -> tuple[str, ...]:
    if not all(_METHOD.fullmatch(value) for value in values):
        raise ValueError('expected HTTP methods such as ["GET", "HEAD"]')
    return tuple(value.upper() for value in values)


def _path_pattern(value: str) -> str:
    if not value.startswith("/"):
        raise ValueError('a path starts with "/", such as "/users/*", "/users/{id}" or "/health"')
    if "?" in value or "#" in value:
        raise ValueError("a path has no query or fragment")
    segments = value[1:].split("/")
    for position, segment in enumerate(segments):
        if "*" in segment and segment != "*":
            raise ValueError('"*" stands for a whole segment, and at the end for everything below')
        if ("{" in segment or "}" in segment) and not re.fullmatch(r"\{[A-Za-z_][A-Za-z0-9_]*\}", segment):
            raise ValueError('a named segment is written "{name}"')
        if segment == "" and position < len(segments) - 1:
            raise ValueError("a path has no empty segment")
    return value


def _number_or(pattern: re.Pattern[str], kind: str) -> WithJsonSchema:
    number = {"type": kind, "minimum": 0}
    return WithJsonSchema({"anyOf": [number, {"type": "string", "pattern": f"^{pattern.pattern}$"}]})


Size = Annotated[int, BeforeValidator(parse_size), Field(ge=0), _number_or(_SIZE, "integer")]
Seconds = Annotated[float, BeforeValidator(parse_span), Field(ge=0, allow_inf_nan=False), _number_or(_SPAN, "number")]
Address = Annotated[str, AfterValidator(_address)]
Network = Annotated[str, AfterValidator(_network)]
HttpUrl = Annotated[str, AfterValidator(_http_url)]
RedisUrl = Annotated[str, AfterValidator(_redis_url)]
UpstreamHost = Annotated[str, AfterValidator(_upstream_host)]
Methods = Annotated[tuple[str, ...], AfterValidator(_methods)]
PathPattern = Annotated[str, AfterValidator(_path_pattern)]


class Substituted(str):
    """A string that the environment had a part in: messages show `source`, how it is written, not what it became."""

    __slots__ = ("source",)
    source: str

    def __new__(cls, value: str, source: str) -> Substituted:
        self = super().__new__(cls, value)
        self.source = source
        return self

    def __repr__(self) -> str:
        return f"the value of {self.source}"
