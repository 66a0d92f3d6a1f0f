"""Where Redis is, by its URL.

    redis://[[USER]:PASSWORD@]HOST[:PORT][/DB]                              one server
    unix:///PATH                                                            one server on this machine
    redis+sentinel://[[USER]:PASSWORD@]HOST[:PORT],HOST,.../SERVICE         the primary that the Sentinels name
    redis+cluster://[[USER]:PASSWORD@]HOST[:PORT],HOST,...                  a cluster; some of its nodes

`rediss` instead of `redis` speaks TLS. Behind `?` may stand `username`, `password`, `db`; with TLS redis-py's
`ssl_ca_certs`, `ssl_ca_path`, `ssl_certfile`, `ssl_keyfile`, `ssl_password`, `ssl_cert_reqs`, `ssl_check_hostname`, and
`ssl_server_name`: the one name in the certificates of all servers, and of the Sentinels, where that is not their host.
For Sentinels `sentinel_username`, `sentinel_password` (their own) and `sentinel_ssl`.

No message repeats what the URL has: it may be a password.
"""

from __future__ import annotations

import difflib
import re
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

Kind = Literal["single", "sentinel", "cluster"]
Address = tuple[str, int]
"""Host and port."""

EXPECTED: Final = (
    'expected "embedded", "redis://host:6379/0", "rediss://..." (TLS), "unix:///path/to/socket",'
    ' "redis+sentinel://host1,host2,host3/service" or "redis+cluster://host1,host2"'
)
ENCODED: Final = "a password's special characters are percent-encoded"
KINDS: Final[Mapping[str, Kind]] = {"redis": "single", "redis+sentinel": "sentinel", "redis+cluster": "cluster"}
PORTS: Final[Mapping[Kind, int]] = {"single": 6379, "sentinel": 26379, "cluster": 6379}
MAX_HOSTS: Final = 100

_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9_.-]+)(?::([0-9]{1,5}))?")
_YES: Final = ("true", "yes", "1")
_NO: Final = ("false", "no", "0")


def _text(value: str) -> str:
    if not value:
        raise ValueError("a value")
    return value


def _boolean(value: str) -> bool:
    if value.lower() not in (*_YES, *_NO):
        raise ValueError("true or false")
    return value.lower() in _YES


def _number(value: str) -> int:
    if not (value.isascii() and value.isdigit()):
        raise ValueError("a number")
    return int(value)


def _requirement(value: str) -> str:
    if value not in ("required", "optional", "none"):
        raise ValueError('"required", "optional" or "none"')
    return value


Parse = Callable[[str], Any]
LOGIN: Final[Mapping[str, Parse]] = {"username": _text, "password": _text, "db": _number}
TLS: Final[Mapping[str, Parse]] = {
    "ssl_ca_certs": _text,
    "ssl_ca_path": _text,
    "ssl_certfile": _text,
    "ssl_keyfile": _text,
    "ssl_password": _text,
    "ssl_cert_reqs": _requirement,
    "ssl_check_hostname": _boolean,
    "ssl_server_name": _text,
}
SENTINEL: Final[Mapping[str, Parse]] = {
    "sentinel_username": _text,
    "sentinel_password": _text,
    "sentinel_ssl": _boolean,
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where Redis is and how it is spoken to. What may be secret is not in its repr.

    Attributes:
        hosts: the server, the Sentinels, or nodes of the cluster; none for a socket.
        path: of the socket.
        tls: None without TLS; else what redis-py's connections take, by the same names.
        server_name: whom the certificate of each server, and of each Sentinel, must name; empty for its host.
        service: what the Sentinels call the primary.
        sentinel: user and password of the Sentinels themselves.
        sentinel_tls: the same as `tls`, for the Sentinels.
    """

    kind: Kind
    hosts: tuple[Address, ...] = ()
    path: str = ""
    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    db: int = 0
    tls: Mapping[str, Any] | None = field(default=None, repr=False)
    server_name: str = ""
    service: str = ""
    sentinel: Mapping[str, str] = field(default_factory=dict, repr=False)
    sentinel_tls: Mapping[str, Any] | None = field(default=None, repr=False)

    @property
    def login(self) -> dict[str, Any]:
        """What redis-py's connections take to log in."""
        found = {"username": self.username, "password": self.password, "db": self.db}
        return {name: value for name, value in found.items() if value}


def parse(url: str) -> Place:
    """Where a URL says that Redis is.

    Raises:
        ValueError: what is wrong with it and what to write, without repeating any of it.
    """
    try:
        parts = urlsplit(url)
        pairs = parse_qsl(parts.query, keep_blank_values=True, max_num_fields=100)
    except ValueError:  # its text would repeat a part of the URL
        raise ValueError(f"{EXPECTED}; {ENCODED}") from None
    # `redis:/host` has the scheme too.
    if not url.startswith(f"{parts.scheme}://"):
        raise ValueError(EXPECTED)
    if parts.fragment:
        raise ValueError(f'"#" does not belong into the URL of Redis: {ENCODED}')
    if parts.scheme == "unix":
        return _socket(parts.netloc, unquote(parts.path), _options(pairs, LOGIN, "unix"))
    secure = parts.scheme.startswith("rediss")
    kind = KINDS.get(parts.scheme.replace("rediss", "redis", 1))
    if kind is None:
        raise ValueError(EXPECTED)
    known = {**LOGIN, **(TLS if secure else {}), **(SENTINEL if kind == "sentinel" else {})}
    options = _options(pairs, known, parts.scheme)
    user, _, hosts = parts.netloc.rpartition("@")
    name, _, password = user.partition(":")
    options = {"username": unquote(name), "password": unquote(password)} | options
    if options["username"] and not options["password"]:
        raise ValueError("a user without a password: expected user:password@ before the host, or :password@ alone")
    tls = {key: value for key, value in options.items() if key in TLS and key != "ssl_server_name"} if secure else None
    return Place(
        kind,
        _hosts(hosts, kind),
        username=options["username"],
        password=options["password"],
        db=_database(kind, unquote(parts.path), options),
        tls=tls,
        server_name=options.get("ssl_server_name", ""),
        service=_service(unquote(parts.path)) if kind == "sentinel" else "",
        sentinel={key: options[f"sentinel_{key}"] for key in ("username", "password") if f"sentinel_{key}" in options},
        sentinel_tls=(tls or {}) if options.get("sentinel_ssl", secure) else None,
    )


def _socket(netloc: str, path: str, options: dict[str, Any]) -> Place:
    user, _, host = netloc.rpartition("@")
    if host or len(path) < 2:
        raise ValueError('expected the path of a socket behind "unix://", such as "unix:///run/valkey/valkey.sock"')
    name, _, password = user.partition(":")
    return Place(
        "single",
        path=path,
        username=options.get("username", unquote(name)),
        password=options.get("password", unquote(password)),
        db=options.get("db", 0),
    )


def _options(pairs: list[tuple[str, str]], known: Mapping[str, Parse], scheme: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in known:
            try:
                found[name] = known[name](value)
            except ValueError as error:
                raise ValueError(f"{name} in the URL: expected {error}") from None
        elif name in TLS:
            raise ValueError(f'{name} goes with TLS: expected "rediss" instead of "redis" in front of the URL')
        elif name in SENTINEL:
            raise ValueError(f'{name} goes with "redis+sentinel://" and "rediss+sentinel://" only')
        else:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"{scheme}:// knows {', '.join(known)}"
            raise ValueError(f"an option behind ? in the URL is not known: {hint}")
    return found


def _hosts(text: str, kind: Kind) -> tuple[Address, ...]:
    if not text and kind == "single":
        return (("localhost", PORTS[kind]),)
    found = []
    for part in text.split(","):
        match = _HOST.fullmatch(part)
        if match is None or (match[2] is not None and not 0 < int(match[2]) <= 65535):
            raise ValueError(f"expected HOST, HOST:PORT or [IPv6]:PORT behind the scheme; {ENCODED}")
        found.append((match[1].strip("[]"), int(match[2] or PORTS[kind])))
    if kind == "single" and len(found) > 1:
        raise ValueError(
            'several hosts: expected "redis+sentinel://host1,host2,host3/service" or "redis+cluster://host1,host2"'
        )
    if len(found) > MAX_HOSTS:
        raise ValueError(f"expected at most {MAX_HOSTS} hosts: some of a cluster's nodes are enough")
    return tuple(found)


def _database(kind: Kind, path: str, options: Mapping[str, Any]) -> int:
    db: int = options.get("db", 0)
    if kind != "sentinel" and "db" not in options and (number := path.strip("/")):
        try:
            db = _number(number)
        except ValueError:
            raise ValueError("expected the number of a database behind the host, such as /0, or nothing") from None
    if kind == "cluster" and db:
        raise ValueError("a cluster has no databases: leave the number out")
    return db


def _service(path: str) -> str:
    service = path.strip("/")
    if not service or "/" in service:
        raise ValueError(
            "expected what the Sentinels call the primary behind the hosts, such as"
            ' "redis+sentinel://host1,host2,host3/mymaster"; a database stands in ?db=1'
        )
    return service


def tls_context(options: Mapping[str, Any]) -> ssl.SSLContext:
    """The TLS settings of a URL, as redis-py reads them.

    Raises:
        ValueError: a file is not there, or is none of the kind.
    """
    from redis.asyncio.connection import SSLConnection

    try:
        context: ssl.SSLContext = SSLConnection(**options).ssl_context.get()
    except (OSError, ssl.SSLError) as error:
        names = ", ".join(name for name in TLS if name in options)
        raise ValueError(f"TLS: the files of {names} cannot be used: {error.strerror or error}") from None
    return context
