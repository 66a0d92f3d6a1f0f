"""Connections to one upstream: aiohttp's connector and C parser, without its session and request objects.

rules
1. An answer belongs to the request that was asked for it: bytes that come while nothing was asked end the
   connection, and so do bytes beyond an answer's end.
2. A connection goes back to the pool only after a whole answer to a wholly sent request.
3. Whatever ends a connection also fails the body that is being read from it: a cut body never looks complete.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, cast

from aiohttp import ClientPayloadError, ClientRequest, ClientTimeout, TCPConnector
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ConnectionKey
from aiohttp.connector import Connection as Lease
from yarl import URL

from gateway import config

# Bytes of an answer's body read ahead of the client: twice this at most.
READ_AHEAD: Final = 64 << 10
# Header lines of an answer. Many Set-Cookie lines are the usual reason for a long header.
MAX_HEADERS: Final = 256


class UpstreamBroken(Exception):
    """The upstream's answer ended early or is not valid HTTP; what was received of it must not look complete."""


class UpstreamConnection(ResponseHandler):
    """One connection to the upstream.

    Args:
        pool: whose counter of open connections it keeps.
        silence: seconds without a byte, while an answer is due, after which waiting fails.
    """

    def __init__(self, pool: Pool, silence: float, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._pool = pool
        self._silence = silence
        # per connection
        self.asked = 0
        self._watch: asyncio.TimerHandle | None = None
        self._tunnel = False
        # per request
        self.heard = False
        self._busy = False
        self._deadline = math.inf

    def begin(self, *, without_body: bool, max_header: int) -> None:
        """Get ready for one answer.

        Args:
            without_body: its head is all of it (HEAD).
            max_header: bytes a header line of it may have.
        """
        if self._parser is None or without_body != self._skip_payload:
            self.set_response_params(
                skip_payload=without_body,
                read_until_eof=True,
                auto_decompress=False,
                read_bufsize=READ_AHEAD,
                max_line_size=max_header,
                max_field_size=max_header,
                max_headers=MAX_HEADERS,
            )
        self.asked += 1
        self.heard = False
        self._busy = True

    def rest(self) -> None:
        """The answer is complete: nothing may come until the next request."""
        self._busy = False

    def become_tunnel(self) -> None:
        """From now on silence is allowed and each direction ends on its own."""
        self._tunnel = True
        self._drop_timeout()

    @property
    def should_close(self) -> bool:
        # A message that has begun behind the answer would be taken for a part of the next one.
        return super().should_close or self._parser is None or self._parser.feed_eof() is not None

    # -- asyncio and aiohttp call these ------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._pool.open += 1

    def connection_lost(self, exc: BaseException | None) -> None:
        self._pool.open -= 1
        if self._watch is not None:
            self._watch.cancel()
        payload = self._payload
        if exc is not None and payload is not None and not payload.is_eof():
            # aiohttp takes any end of the connection for the end of a body that has no other.
            payload.set_exception(ClientPayloadError(f"connection lost: {exc}"))
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self._busy:
            if self.transport is not None:
                self.transport.abort()
            return
        self.heard = True
        super().data_received(data)

    def eof_received(self) -> bool:  # type: ignore[override]
        super().eof_received()
        if not self._tunnel or self.transport is None or self.transport.get_extra_info("sslcontext") is not None:
            return False
        relay: Any = self._payload_parser
        relay.feed_eof()
        return True

    def set_exception(self, exc: BaseException, exc_cause: BaseException | None = None) -> None:
        payload = self._payload
        if payload is not None and not payload.is_eof():
            payload.set_exception(exc)
        super().set_exception(exc, exc if exc_cause is None else exc_cause)

    def resume_reading(self, resume_parser: bool = True) -> None:
        # Called for each piece that is read; most never met a pause.
        if self._reading_paused:
            super().resume_reading(resume_parser)

    # One timer per connection that looks at a deadline, instead of one made and cancelled per piece.

    def _reschedule_timeout(self) -> None:
        if self._tunnel:
            return
        self._deadline = self._loop.time() + self._silence
        if self._watch is None:
            self._watch = self._loop.call_at(self._deadline, self._look)

    def _drop_timeout(self) -> None:
        self._deadline = math.inf

    def _look(self) -> None:
        self._watch = None
        if self._deadline <= self._loop.time():
            self._on_read_timeout()
        elif self._deadline < math.inf:
            self._watch = self._loop.call_at(self._deadline, self._look)


@dataclass(frozen=True)
class Target:
    """What aiohttp's connector looks at in a request."""

    url: URL
    ssl: bool
    connection_key: ConnectionKey
    proxy: None = None
    server_hostname: None = None

    @classmethod
    def of(cls, url: URL, verify_tls: bool) -> Target:
        key = ConnectionKey(
            url.raw_host or "", url.port, url.scheme == "https", verify_tls, proxy=None, proxy_auth=None,
            proxy_headers_hash=None,
        )  # fmt: skip
        return cls(url, verify_tls, key)

    @property
    def host(self) -> str:
        return self.connection_key.host

    @property
    def port(self) -> int | None:
        return self.connection_key.port

    def is_ssl(self) -> bool:
        return self.connection_key.is_ssl


class Pool:
    """The connections to one upstream.

    Those of tunnels, and of requests that are tried again, are made for one use; `max_connections` holds for them
    and for the kept ones separately, so that long-lived tunnels cannot starve requests.
    """

    def __init__(self, table: config.Upstream) -> None:
        self.open = 0
        self._target = cast(ClientRequest, Target.of(URL(table.url), table.verify_tls))
        self._timeout = ClientTimeout(total=None, connect=table.connect_timeout)
        factory: Any = partial(UpstreamConnection, self, table.read_timeout, asyncio.get_running_loop())
        if table.keepalive_timeout:
            self._kept = TCPConnector(limit=table.max_connections, keepalive_timeout=table.keepalive_timeout)
        else:
            self._kept = TCPConnector(limit=table.max_connections, force_close=True)
        self._single = TCPConnector(limit=table.max_connections, force_close=True)
        self._kept._factory = self._single._factory = factory

    async def acquire(self, *, single_use: bool) -> Lease:
        """A connection; `release` or `close` it.

        Raises:
            TimeoutError: none was free, or none could be opened, within `connect_timeout`.
            aiohttp.ClientError: refused, no such name, TLS.
        """
        connector = self._single if single_use else self._kept
        return await connector.connect(self._target, [], self._timeout)

    async def close(self) -> None:
        """Close all connections, those in use too."""
        await self._kept.close()
        await self._single.close()


def connection_of(lease: Lease) -> UpstreamConnection:
    """The connection that was leased."""
    return cast(UpstreamConnection, lease.protocol)


def release(lease: Lease) -> None:
    """Give a connection back after a whole answer; it is closed if it cannot serve another request."""
    connection_of(lease).rest()
    lease.release()
