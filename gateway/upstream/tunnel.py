"""What follows a 101: bytes in both directions, whatever protocol they speak.

Each direction is paused while its receiver is slow. When one side has said all it had to say, the other may finish
its own sentence; when one side is gone, or both have been silent for too long, the tunnel ends.
"""

from __future__ import annotations

import asyncio
from typing import Final

from aiohttp.base_protocol import BaseProtocol
from aiohttp.web_protocol import RequestHandler

from gateway.upstream.connection import UpstreamConnection

# Seconds without a byte in either direction. Most protocols that live this long ping within a minute;
# a connection whose other end has vanished without a word must not be kept for ever.
IDLE_SECONDS: Final = 3600.0
# The same once one side has ended: only the rest of what the other is saying is awaited.
HALF_CLOSED_SECONDS: Final = 30.0


class Tunnel:
    """The body of a 101 answer: relays until it ends.

    Args:
        upstream: the upstream's connection, after its 101.
    """

    def __init__(
        self, upstream: UpstreamConnection, *, idle: float = IDLE_SECONDS, half_closed: float = HALF_CLOSED_SECONDS
    ) -> None:
        self._upstream = upstream
        self._idle = idle
        self._half_closed = half_closed
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._active = self._loop.time()
        self._resuming: set[asyncio.Task[None]] = set()

    async def run(self, client: RequestHandler) -> None:
        """Relay between the client's connection and the upstream's; the upstream's is closed at the end."""
        upstream = self._upstream
        upstream.become_tunnel()
        outward, inward = Relay(self, client, upstream), Relay(self, upstream, client)
        try:
            if client.transport is None:
                return
            upstream.set_parser(inward, None)
            client.set_parser(outward)  # type: ignore[arg-type]
            while client.transport is not None and upstream.transport is not None:
                if outward.ended and inward.ended:
                    return
                limit = self._half_closed if outward.ended or inward.ended else self._idle
                left = self._active + limit - self._loop.time()
                if left <= 0:
                    return
                self._changed.clear()
                try:
                    async with asyncio.timeout(left):
                        await self._changed.wait()
                except TimeoutError:
                    continue  # there may have been traffic meanwhile
        finally:
            # What was written to the client before its upstream ended still leaves.
            if client.transport is not None:
                client.transport.close()
            await self.aclose()

    async def aclose(self) -> None:
        """Close the upstream's connection."""
        for task in self._resuming:
            task.cancel()
        self._upstream.discard()

    def moved(self) -> None:
        """Bytes have come from either side."""
        self._active = self._loop.time()

    def ended(self) -> None:
        """A side has ended: `run` looks again."""
        self._active = self._loop.time()
        self._changed.set()

    def resume_later(self, relay: Relay) -> None:
        """Read from a paused side again once the other has taken what was written to it."""
        task = self._loop.create_task(relay.resume())
        self._resuming.add(task)
        task.add_done_callback(self._resuming.discard)


class Relay:
    """One direction; aiohttp's protocols feed it what they receive, as they feed a parser."""

    def __init__(self, tunnel: Tunnel, source: BaseProtocol, sink: BaseProtocol) -> None:
        self.ended = False
        self._tunnel = tunnel
        self._source = source
        self._sink = sink
        self._paused = False

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        self._tunnel.moved()
        transport = self._sink.transport
        if transport is not None and not self.ended:
            transport.write(data)
            if self._sink.writing_paused and not self._paused:
                self._paused = True
                self._source._pause_reading_for_buffer()
                self._tunnel.resume_later(self)
        return False, b""

    async def resume(self) -> None:
        try:
            await self._sink._drain_helper()
        except ConnectionError:
            return  # the sink has gone, which ends the tunnel
        self._paused = False
        self._source._resume_reading_for_buffer()

    def feed_eof(self) -> None:
        """The source sends no more; called again when its connection is lost."""
        transport = self._sink.transport
        if not self.ended and transport is not None and not transport.is_closing():
            if transport.can_write_eof():
                transport.write_eof()
            else:
                transport.close()  # TLS has no half-closed connections
        self.ended = True
        self._tunnel.ended()
