"""The configured gateway as those see it who look after it: the plugins' admin routes and their commands.

Neither serves a request. What a worker would make of one, and what Redis has, is looked up when somebody asks.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast
from urllib.parse import urlsplit

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import HttpRequestParser
from pydantic import ValidationError

from gateway.config import Admin, Config, ConfigError, PluginTable, Problem, redact
from gateway.connection import BadRequest, Connection
from gateway.loader import find, make_plugins
from gateway.observe.metrics import Snapshot
from gateway.plugin import Plugin
from gateway.request import BodyTooLarge, Request
from gateway.response import header_line
from gateway.worker import Worker

if TYPE_CHECKING:
    from redis.asyncio import Redis

FRAMING: Final = {"content-length", "transfer-encoding"}
PROXY: Final = ("forwarded", "x-forwarded")
NO_REDIS: Final = "redis://127.0.0.1:1"
LOCAL: Final = "127.0.0.1"
ANY: Final = ("", "0.0.0.0", "[::]")  # noqa: S104  # to connect to them means this machine
REQUESTS: Final = "gateway_requests_total"
METRICS_SECONDS: Final = 3.0
MAX_METRICS: Final = 16 << 20

P = TypeVar("P", bound=Plugin)
Requests = dict[str, dict[str, int]]
"""Counts by route and outcome."""


class Context:
    """What the admin routes and commands of a plugin get.

    Args:
        config: the whole configuration, as it is now.
        folder: where its own plugins lie.
        redis: a client with replies as bytes; it connects with its first command.
        requests: tells how many requests were answered, by route and outcome, since the gateway on this machine has
            started; None where none runs.
    """

    def __init__(
        self,
        config: Config,
        folder: Path,
        redis: Redis,
        requests: Callable[[], Awaitable[Requests | None]],
    ) -> None:
        self.config = config
        self.redis = redis
        self.prefix = config.redis.prefix
        self.requests = requests
        self._folder = folder

    def __repr__(self) -> str:
        return f"<Context {self.prefix}>"

    def plugins(self, kind: type[P]) -> list[P]:
        """The configuration's plugins of a class; else one with defaults. None of them is started.

        Raises:
            ConfigError: a table of this class is wrong, or there is none and the class has no defaults.
        """
        return plugins_of(self.config, self._folder, kind)

    def upstream(self, name: str) -> str:
        """Where an upstream is, without its password."""
        return redact(self.config.upstreams[name].url)

    def request(
        self, method: str, url: str, fields: Iterable[tuple[str, str]] = (), body: bytes | None = None
    ) -> Request:
        """What a worker would make of a request: its route, host, path and header, read by the same code.

        Nothing is sent, and no plugin has seen it. It has come from a trusted proxy if the configuration has any and
        the URL or a field says so; otherwise from this machine.

        Args:
            url: as clients see it, `http://host/path?query`.
            fields: the header fields the client sends; `Host` is the URL's where it is not among them.
            body: None for a request without one.

        Raises:
            ValueError: it is no request that a worker would take.
        """
        request = trial(self.config, method, url, fields)
        if body is not None:
            request.body = GivenBody(body)
        return request


def plugins_of(config: Config, folder: Path, kind: type[P], source: str = "configuration") -> list[P]:
    """The configuration's plugins of a class, enabled or not; else one with defaults.

    One that is not enabled counts too: what it has in Redis is still there. What is wrong with other plugins is no
    reason not to revoke a session.

    Raises:
        ConfigError: a table of this class is wrong, or there is none and the class has no defaults.
    """
    tables: dict[str, PluginTable] = {}
    for name, table in config.plugins.items():
        try:
            found = find(table.use or name, folder)
        except LookupError:
            continue
        if issubclass(found, kind):
            tables[name] = table.model_copy(update={"enabled": True})
    made, problems = make_plugins(tables, folder)
    if problems:
        raise ConfigError(source, problems)
    try:
        return [cast(P, plugin) for plugin in made.values()] or [kind(kind.Config(), kind.__name__.lower())]
    except ValidationError:
        hint = "give another with --config FILE"
        raise ConfigError(source, [Problem(key="plugins", expected=f"has no {kind.__name__}", hint=hint)]) from None


def client(url: str, timeout: float) -> Redis:
    """A client that fails rather than waits: with its first command, after at most `timeout` seconds each time.

    Raises:
        ValueError: the URL is wrong; the text does not repeat it.
    """
    from gateway.store.clients import make_async_client

    return make_async_client(url, timeout, "gateway-admin")


def requests_of(series: Iterable[tuple[str, str, float]]) -> Requests:
    """Route, outcome and count of each series of `gateway_requests_total`, added up by route and outcome."""
    found: Requests = {}
    for route, outcome, count in series:
        outcomes = found.setdefault(route, {})
        outcomes[outcome] = outcomes.get(outcome, 0) + int(count)
    return found


def requests_in(snapshot: Snapshot) -> Requests:
    """The same from a merged snapshot of the workers' metrics."""
    family = snapshot.get(REQUESTS)
    if family is None:
        return {}
    route, outcome = family["labels"].index("route"), family["labels"].index("outcome")
    return requests_of((values[route], values[outcome], count) for values, count in family["series"])


async def requests_at(table: Admin) -> Requests | None:
    """The same from the admin listener of the gateway that runs on this machine; None where none answers."""
    from prometheus_client.parser import text_string_to_metric_families

    host, _, port = table.listen.rpartition(":")
    url = f"http://{LOCAL if host in ANY else host}:{port}/_gateway/metrics"
    token = table.token.get_secret_value()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(METRICS_SECONDS)) as session,
            session.get(url, headers=headers, allow_redirects=False) as response,
        ):
            text = (await response.content.read(MAX_METRICS)).decode() if response.status == 200 else ""
    except (aiohttp.ClientError, TimeoutError, ValueError):
        return None
    try:
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    except ValueError:
        return None
    found = requests_of(
        (sample.labels["route"], sample.labels["outcome"], sample.value)
        for sample in samples
        if sample.name == REQUESTS and {"route", "outcome"} <= set(sample.labels)
    )
    return found if samples else None


# -- a request that nobody sends -----------------------------------------------------------------------


class GivenBody:
    """A body that is here already."""

    def __init__(self, body: bytes) -> None:
        self.length: int | None = len(body)
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._body

    async def read(self, limit: int) -> bytes:
        if len(self._body) > limit:
            raise BodyTooLarge
        return self._body

    async def peek(self, limit: int) -> bytes | None:
        return self._body if len(self._body) <= limit else None


def trial(config: Config, method: str, url: str, fields: Iterable[tuple[str, str]] = ()) -> Request:
    """See `Context.request`."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc or "@" in parts.netloc:
        raise ValueError(f"{url}: expected a URL as clients see it, such as http://example.com/path")
    given = list(fields)
    target = url.partition("#")[0].partition("://")[2][len(parts.netloc) :]
    target = target if target.startswith("/") else "/" + target
    names = {name.lower() for name, _ in given}
    if framing := names & FRAMING:
        raise ValueError(f"{framing.pop()}: leave it out; how long the body is can be seen")
    behind_proxy = bool(config.server.trusted_proxies) and (
        parts.scheme == "https" or any(name.startswith(PROXY) for name in names)
    )
    if parts.scheme == "https" and not behind_proxy:
        raise ValueError(
            f"{url}: no client reaches this gateway by https: it listens for http, and server.trusted_proxies names"
            " no proxy; give the URL with http://"
        )
    if behind_proxy and "x-forwarded-proto" not in names:
        given.append(("X-Forwarded-Proto", parts.scheme))
    if "host" not in names:
        given.insert(0, ("Host", parts.netloc))
    message = _parsed(config, method, target, given)
    # Nothing of it is started: it opens no connection.
    redis = config.redis.model_copy(update={"url": NO_REDIS})
    server = Worker(config.model_copy(update={"redis": redis}), {}).server
    connection = server()
    assert isinstance(connection, Connection)
    connection.peer, connection.trusted = LOCAL, behind_proxy
    try:
        return server.request(connection, server.head(message))
    except BadRequest as error:
        raise ValueError(f"the gateway refuses this request: {error}") from None


def _parsed(config: Config, method: str, target: str, fields: Sequence[tuple[str, str]]) -> Any:
    """A request's head as aiohttp's parser reads it off a connection."""
    if not (method.isascii() and method.isalpha()):
        raise ValueError(f"{method!r} is no method")
    if not target.isascii() or not target.isprintable() or " " in target:
        raise ValueError("the URL has a character that clients must send as %XX")
    head = b"".join(header_line(name, value) for name, value in fields)
    table = config.server
    parser = HttpRequestParser(
        None,  # only a body would need it
        asyncio.get_running_loop(),
        2**16,
        max_line_size=table.max_request_line,
        max_field_size=table.max_header,
        max_headers=table.max_headers,
        auto_decompress=False,
    )
    try:
        messages, _, _ = parser.feed_data(f"{method.upper()} {target} HTTP/1.1\r\n".encode() + head + b"\r\n")
    except HttpProcessingError as error:
        raise ValueError(f"the gateway refuses this request: {error.message}") from None
    if len(messages) != 1:
        raise ValueError("the gateway refuses this request: its header ends where it should not")
    return messages[0][0]
