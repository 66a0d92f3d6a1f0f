"""A TCP relay that can be told to misbehave, to stand between a gateway and its Redis. With a TLS context it is
also what ends TLS in front of a server that has none.

Servers of a cluster, and Sentinels, tell their clients where the others are. Relays in front of all of them put their
own ports in place of the servers' in what they carry, as a NAT would: who has come through one of them never leaves
them, and nobody else (the servers among themselves, whoever asks them directly) knows that they are there.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any

PIECE = 65536
# Pieces under way in each direction of a connection: what comes after them waits in the kernel's buffers.
MAX_UNDER_WAY = 1000
# As MOVED, ASK and CLUSTER NODES write an address (and URLs), CLUSTER SLOTS, and Sentinels in two ways. Ports that the
# kernel chooses have five digits; so what stands before a text, its length, stays true.
ADDRESS = re.compile(rb"(127\.0\.0\.1(?::|\r\n:|\r\n(?:\$4\r\nport\r\n)?\$5\r\n))(\d{5})(?!\d)")


async def until_one_ends(*pumps: Coroutine[Any, Any, None]) -> None:
    """Both directions of a connection: with one the other ends."""
    tasks = [asyncio.ensure_future(pump) for pump in pumps]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@dataclass(eq=False)
class _Pair:
    """A client's connection and the one to the server that belongs to it."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter

    def reset(self) -> None:
        """RST to both sides, as from a machine that has been switched off and on."""
        for writer in (self.client, self.server):
            with contextlib.suppress(OSError, ValueError, AttributeError):  # it has gone already
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()


class Relay:
    """Relays to a port on this machine. What it is told counts for connections that are open, too.

    Args:
        to: the server's port.
        tls: clients must speak TLS; the server gets plain text.
        rename: what clients get in place of what the server says.

    Attributes:
        delay: seconds that each piece from the server takes longer; those behind it do not wait for it twice.
    """

    def __init__(
        self, to: int, tls: ssl.SSLContext | None = None, rename: Callable[[bytes], bytes] | None = None
    ) -> None:
        self.to = to
        self.port = 0
        self.delay = 0.0
        self.accepted = 0
        self._tls = tls
        self._rename = rename
        self._pairs: set[_Pair] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: asyncio.Server | None = None
        self._to_server = asyncio.Event()
        self._to_client = asyncio.Event()
        self._cut_after: int | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def sources(self) -> set[int]:
        """The ports from which it has connected to the server."""
        return {pair.server.get_extra_info("sockname")[1] for pair in self._pairs}

    async def start(self) -> None:
        self._listener = await asyncio.start_server(
            self._accept, "127.0.0.1", self.port, ssl=self._tls, reuse_address=True, backlog=1024
        )
        self.port = self._listener.sockets[0].getsockname()[1]
        self.heal()

    async def stop(self) -> None:
        self.refuse()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- what it does to connections ---------------------------------------------------------------

    def heal(self) -> None:
        """All arrives again, also what was held up. (After `refuse` call `start`.)"""
        self.delay = 0.0
        self._cut_after = None
        self._to_server.set()
        self._to_client.set()

    def stall(self) -> None:
        """Questions arrive, answers do not."""
        self._to_client.clear()

    def partition(self) -> None:
        """Nothing arrives on either side, and nothing says so."""
        self._to_client.clear()
        self._to_server.clear()

    def cut(self) -> None:
        """RST to all connections; new ones work."""
        for pair in list(self._pairs):
            pair.reset()

    def cut_after(self, count: int) -> None:
        """RST once so many bytes more have come from the server, wherever that is in a reply."""
        self._cut_after = count

    def refuse(self) -> None:
        """RST to all connections, and new ones are refused, until `start`."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        self.cut()

    # -- inside ------------------------------------------------------------------------------------

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self.to)
        except OSError:
            writer.transport.abort()
            return
        pair = _Pair(writer, server_writer)
        self._pairs.add(pair)
        try:
            await until_one_ends(
                self._pump(reader, pair, to_client=False), self._pump(server_reader, pair, to_client=True)
            )
        finally:
            self._pairs.discard(pair)
            for one in (pair.client, pair.server):
                one.close()

    async def _pump(self, reader: asyncio.StreamReader, pair: _Pair, *, to_client: bool) -> None:
        """One direction, until it ends."""
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(MAX_UNDER_WAY)
        sender = asyncio.ensure_future(self._send(under_way, pair, to_client=to_client))
        loop = asyncio.get_running_loop()
        try:
            while piece := await reader.read(PIECE):
                if to_client and self._rename is not None:
                    piece = self._rename(piece)
                await under_way.put((loop.time() + (self.delay if to_client else 0.0), piece))
            await under_way.put((0.0, b""))
            await sender
        except OSError:
            pass
        finally:
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)

    async def _send(self, under_way: asyncio.Queue[tuple[float, bytes]], pair: _Pair, *, to_client: bool) -> None:
        writer, gate = (pair.client, self._to_client) if to_client else (pair.server, self._to_server)
        loop = asyncio.get_running_loop()
        while True:
            due, piece = await under_way.get()
            if not piece:
                return
            if (wait := due - loop.time()) > 0:
                await asyncio.sleep(wait)
            await gate.wait()
            if to_client and self._cut_after is not None:
                piece, self._cut_after = piece[: self._cut_after], self._cut_after - len(piece)
                if self._cut_after <= 0:
                    self._cut_after = None
                    writer.write(piece)
                    await asyncio.sleep(0.01)  # lets it leave: an RST overtakes what waits
                    self.cut()
                    return
            try:
                writer.write(piece)
                await writer.drain()
            except OSError:
                return


@contextlib.asynccontextmanager
async def running_relay(to: int, tls: ssl.SSLContext | None = None) -> AsyncIterator[Relay]:
    relay = Relay(to, tls)
    await relay.start()
    try:
        yield relay
    finally:
        await relay.stop()


class Relays:
    """One in front of each of several servers that tell of each other."""

    def __init__(self, ports: Iterable[int]) -> None:
        self._by_port = {port: Relay(port, rename=self.renamed) for port in ports}

    def __getitem__(self, port: int) -> Relay:
        """The one in front of a server, by the server's port."""
        return self._by_port[port]

    @property
    def all(self) -> list[Relay]:
        return list(self._by_port.values())

    def renamed(self, text: bytes) -> bytes:
        """The same with the relays' addresses in place of the servers'."""
        return ADDRESS.sub(self._instead, text)

    def _instead(self, match: re.Match[bytes]) -> bytes:
        relay = self._by_port.get(int(match[2]))
        return match[0] if relay is None else b"%s%d" % (match[1], relay.port)


@contextlib.asynccontextmanager
async def running_relays(ports: Iterable[int]) -> AsyncIterator[Relays]:
    relays = Relays(ports)
    try:
        for relay in relays.all:
            await relay.start()
        yield relays
    finally:
        for relay in relays.all:
            await relay.stop()
