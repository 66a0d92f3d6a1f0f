"""The connections to one upstream: kept ones first, aiohttp's connector for new ones.

rules
1. A connection goes back to the pool only after a whole answer to a wholly sent request.
2. `max_connections` are in use at most; who comes beyond that waits, first come, first served.
3. The one that was used last is used next, so that those that are not needed any more grow old and are closed.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from aiohttp import ClientRequest, ClientTimeout, TCPConnector
from aiohttp.client_reqrep import ConnectionKey
from yarl import URL

from gateway import config
from gateway.upstream.connection import UpstreamConnection, limits
from gateway.upstream.heads import PlainHeads

# `connect_timeout` is kept here: it counts the wait for a free connection too.
NO_TIMEOUT = ClientTimeout(total=None)


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


class Slots:
    """How many connections may be in use at once."""

    def __init__(self, limit: int) -> None:
        self.free = limit
        self._waiting: OrderedDict[asyncio.Future[None], None] = OrderedDict()

    async def take(self) -> None:
        """Wait for one, behind those who wait already."""
        if self.free:
            self.free -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting[turn] = None
        try:
            await turn
        except BaseException:
            if turn.done() and not turn.cancelled():
                self.give_back()  # it was ours, but we were cancelled before we woke
            self._waiting.pop(turn, None)
            raise

    def give_back(self) -> None:
        """Free one: it is the longest waiting task's at once, so that nobody can come in between."""
        while self._waiting:
            turn, _ = self._waiting.popitem(last=False)
            if not turn.done():
                turn.set_result(None)
                return
        self.free += 1


class Pool:
    """The connections to one upstream.

    Those of tunnels, and of requests that are tried again, are made for one use; `max_connections` holds for them
    and for the kept ones separately, so that long-lived tunnels cannot starve requests.

    Args:
        surplus: told when there was more on a connection than an answer; the connection is closed.
    """

    def __init__(self, table: config.Upstream, via_line: bytes, surplus: Callable[[], None]) -> None:
        self.open = 0
        self.surplus = surplus
        self._loop = asyncio.get_running_loop()
        self.heads = PlainHeads(via_line, limits(table), self._loop)
        self._target = cast(ClientRequest, Target.of(URL(table.url), table.verify_tls))
        self._connect_timeout = table.connect_timeout
        self._keepalive = table.keepalive_timeout
        self._shared = Slots(table.max_connections)
        self._single = Slots(table.max_connections)
        # Unused connections and since when, on the loop's clock; the longest unused is the first.
        self._idle: dict[UpstreamConnection, float] = {}
        self._sweeper: asyncio.TimerHandle | None = None
        self._outbox: list[tuple[UpstreamConnection, bytes]] = []
        self._connector = TCPConnector(limit=0, force_close=True)
        factory: Any = partial(UpstreamConnection, self, table, self._loop)
        self._connector._factory = factory

    def take(self) -> UpstreamConnection | None:
        """A kept connection, if there is one that may be used at once; `release` or `discard` it."""
        if not self._shared.free or (connection := self._kept()) is None:
            return None
        self._shared.free -= 1
        return connection

    def _kept(self) -> UpstreamConnection | None:
        while self._idle:
            connection, _ = self._idle.popitem()
            transport = connection.transport
            if transport is not None and not transport.is_closing():
                connection.slots = self._shared
                return connection
            connection.lease.close()
        return None

    async def acquire(self, *, single_use: bool = False) -> UpstreamConnection:
        """A connection: a kept one, or a new one, once others have been given back; `release` or `discard` it.

        Raises:
            TimeoutError: none was free, or none could be opened, within `connect_timeout`.
            aiohttp.ClientError: refused, no such name, TLS.
        """
        if not single_use and (connection := self.take()) is not None:
            return connection
        slots = self._single if single_use else self._shared
        async with asyncio.timeout(self._connect_timeout):
            await slots.take()
            if not single_use and (kept := self._kept()) is not None:
                return kept
            try:
                lease = await self._connector.connect(self._target, [], NO_TIMEOUT)
            except BaseException:
                slots.give_back()
                raise
        connection = cast(UpstreamConnection, lease.protocol)
        connection.lease = lease
        connection.slots = slots
        return connection

    def send_soon(self, connection: UpstreamConnection, head: bytes) -> None:
        """Send a request without a body with all others of this turn of the loop.

        Many writes in a row cost less than the same ones each after a read: only the first one has to wake somebody.
        """
        if not self._outbox:
            self._loop.call_soon(self._send)
        self._outbox.append((connection, head))

    def _send(self) -> None:
        outbox, self._outbox = self._outbox, []
        for connection, head in outbox:
            if connection.transport is not None:  # otherwise whoever waits for the answer has been told
                connection.send(head)
                connection.start_timeout()

    def give_back(self, connection: UpstreamConnection, *, usable: bool) -> None:
        """Keep a connection for the next request, or close it; nothing happens if it is not in use."""
        slots = connection.slots
        if slots is None:
            return
        connection.slots = None
        if usable and slots is self._shared and self._keepalive and connection.transport is not None:
            self._idle[connection] = self._loop.time()
            if self._sweeper is None:
                self._sweeper = self._loop.call_later(self._keepalive, self._sweep)
        else:
            connection.lease.close()
        slots.give_back()

    def lost(self, connection: UpstreamConnection) -> None:
        """A connection has ended."""
        self.open -= 1
        if self._idle.pop(connection, None) is not None:
            connection.lease.close()

    def _sweep(self) -> None:
        """Close what was not used for `keepalive_timeout`."""
        self._sweeper = None
        now = self._loop.time()
        for connection, since in list(self._idle.items()):
            if since + self._keepalive > now:
                self._sweeper = self._loop.call_at(since + self._keepalive, self._sweep)
                return
            del self._idle[connection]
            connection.lease.close()

    async def close(self) -> None:
        """Close all connections, those in use too."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        await self._connector.close()
