"""One Redis connection: the commands of a loop tick leave together, replies come back in their order.

rules
1. The order of replies and pushes on the wire is the mirror's proof of truth: nothing here reorders them.
2. An asker that gives up keeps its place: its reply is still taken off the queue, and dropped.
3. A link is up or down. Down, every ask fails at once; up, every ask ends within `timeout`. Once one has not, it is
   stalled: asks fail at once, until a PING is answered in time.
4. Losing the connection fails all that is in flight and tells the owner, before anything new is asked.
5. Nothing is asked before the handshake (RESP3, AUTH, tracking, scripts) is over.
6. Never on a link: blocking commands, SUBSCRIBE, WATCH, SELECT, MULTI.
7. A server that may take no decisions (a replica, one that is loading its data) is left at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass
from typing import Final, cast

from redis.exceptions import RedisError as ClientError

from gateway.seldom import Seldom
from gateway.store.answer import Answer, RedisDown, RedisError, RedisTimeout, Reply
from gateway.store.attempts import Attempts
from gateway.store.handshake import Owner, check_server, handshake
from gateway.store.pipeline import Pipeline, new_reader
from gateway.store.prepared import pack
from gateway.store.url import Address, tls_context

logger = logging.getLogger("gateway.redis")

# The first command of the handshake may wait for a server that is still loading its data.
CONNECT_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class LinkOptions:
    """How a link behaves; times in seconds. The keys of `[redis]` with the same names explain them."""

    url: str
    timeout: float = 0.25
    max_silence: float = 3.0
    max_queue: int = 10_000
    backoff_base: float = 0.05
    backoff_max: float = 2.0
    client_name: str = "gateway"
    tracking: bool = True
    read_from: str = "primary"


class Link(Pipeline):
    """One auto-pipelined connection, made anew whenever it is lost.

    Args:
        options: within which bounds.
        kind: "main" or "bulk"; see `Redis.ask`. Or "replica", see `Primary`.
        server: in a cluster, which one.
    """

    def __init__(self, options: LinkOptions, owner: Owner, kind: str, server: str = "") -> None:
        super().__init__(options, owner.on_push)
        self.kind = kind
        self.name = f"{kind} {server}" if server else kind
        self.where: Address | None = None
        """The server of this connection, or of the last one; None for a socket."""
        self.server_version = ""
        self.connects = 0
        self.timeouts = 0
        self._complaint = Seldom()
        self._owner = owner
        self._lost: asyncio.Event = asyncio.Event()  # per connection
        self._hurry: asyncio.Event = asyncio.Event()
        self._attempts = Attempts(self.name, options.backoff_base, options.backoff_max)
        self._keeper: asyncio.Task[None] | None = None
        self._closing = False

    def __repr__(self) -> str:
        state = "up" if self.up else f"down ({self.why_down})"
        return f"<Link {self.name} {state}, {len(self.replies)} waiting>"

    # -- the wire ----------------------------------------------------------------------------------

    def made(self, transport: asyncio.Transport) -> None:
        """A new connection is there; the handshake follows."""
        self._transport = transport
        self._heard = self._loop.time()

    def lost(self, transport: asyncio.Transport, error: Exception | None) -> None:
        """A connection has ended; an earlier one's end says nothing about this one."""
        if transport is self._transport:
            self._down(str(error) if error else "connection closed by the server")

    def drop(self, why: str) -> None:
        """End this connection; the next one is made in the background."""
        transport = self._transport
        self._down(why)
        if transport is not None:
            transport.abort()

    def _down(self, why: str) -> None:
        """Fails all that waits; only then does the owner hear of it."""
        was_up, self.up = self.up, False
        self.why_down = why
        self._set_stalled(False)
        self.room = 0
        self._transport = None
        waiting = list(self.replies)
        self.replies.clear()
        self.outbox.clear()
        self._batches.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._lost.set()
        if was_up:
            self._owner.on_state(False)
            if not self._closing:
                self._attempts.lost(self._loop.time(), why)
        failure = RedisDown(f"Redis is down: {why}")
        for entry in waiting:
            if entry is not None:
                entry.fail(failure)

    # -- keeping it up -----------------------------------------------------------------------------

    async def start(self) -> None:
        """Connect in the background, and again whenever the connection is lost; waits for the first try only."""
        first = asyncio.Event()
        self._keeper = self._loop.create_task(self._keep(first))
        self._keeper.add_done_callback(lambda _: first.set())
        await first.wait()

    async def stop(self) -> None:
        """Close the link; asks that are still in flight fail."""
        self._closing = True
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        self.drop("the gateway is stopping")
        await asyncio.sleep(0)  # lets the aborted connection end

    async def _keep(self, first: asyncio.Event) -> None:
        while not self._closing:
            self._lost = asyncio.Event()
            self._hurry.clear()
            try:
                # Not wait_for: in Python 3.11 it loses a `stop` that comes in the moment of a failure.
                async with asyncio.timeout(CONNECT_SECONDS):
                    await self._connect()
            except (OSError, TimeoutError, RedisError, ClientError, ValueError) as error:
                why = str(error) or "no answer in time"
                self.drop(why)
                self._attempts.failed(self._loop.time(), why)
            first.set()
            if self.up:
                await self._watch()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._attempts.pause()):
                    await self._hurry.wait()

    def hurry(self) -> None:
        """There is news of where the server is: a link that is down tries again at once."""
        self._hurry.set()

    async def _connect(self) -> None:
        self._reader = new_reader()
        self._asked = 0
        place, resolve = self._owner.place, self._owner.resolve
        if resolve is None:
            await self._loop.create_unix_connection(lambda: _Wire(self), place.path)
        else:
            self.where = host, port = await resolve()
            # Not in the loop: to read the system's certificates takes 20 ms.
            context = None if place.tls is None else await asyncio.to_thread(tls_context, place.tls)
            name = (place.server_name or None) if context is not None else None
            await self._loop.create_connection(lambda: _Wire(self), host, port, ssl=context, server_hostname=name)
        await self._handshake()
        self.connects += 1
        self.up = True
        self.room = self.options.max_queue
        self.why_down = ""
        self._attempts.made(self._loop.time(), self.server_version)
        self._owner.on_state(True)

    async def _handshake(self) -> None:
        owner = self._owner
        commands = handshake(owner, self.options.client_name, tracking=self.options.tracking)
        replies = [Reply() for _ in commands]
        for command, reply in zip(commands, replies, strict=True):
            self.put(pack(command), reply)
        self.flush()
        hello, *others = replies
        self.server_version = check_server(await hello, owner)
        for other in others:
            await other

    async def _watch(self) -> None:
        """Until the connection is lost: does not trust a silent one."""
        max_silence = self.options.max_silence
        pinged = 0.0
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max_silence / 4):
                    await self._lost.wait()
                return
            now = self._loop.time()
            silent = now - self._heard
            if silent > max_silence:
                self.drop(f"no word from the server for {silent:.1f} s")
            elif silent > max_silence / 2 and now - pinged > max_silence / 2 and self.up:
                pinged = now
                self.put(pack(("PING",)), None)
                self.flush()

    def _expire(self) -> None:
        """End what waits for longer than `timeout`; look again when the next is due."""
        now, timeout = self._loop.time(), self.options.timeout
        batches = self._batches
        replied = self._asked + len(self.outbox) - len(self.replies)
        while batches and batches[0][0] <= replied:
            batches.popleft()
        late = 0
        while batches and batches[0][1] + timeout <= now:
            late = batches.popleft()[0]
        expired = list(self.replies)[: max(0, late - replied)] if late else []
        if expired and not self.stalled:
            self._set_stalled(True)
            self._probe()
        for entry in expired:
            if entry is not None and entry.fail(RedisTimeout(f"no reply from Redis within {timeout * 1000:.0f} ms")):
                self.timeouts += 1
        self._timer = self._loop.call_at(batches[0][1] + timeout, self._expire) if batches else None

    # -- a server that is slow or has stopped ------------------------------------------------------

    def _set_stalled(self, stalled: bool) -> None:
        if stalled == self.stalled:
            return
        self.stalled = stalled
        self.room = 0 if stalled else self.options.max_queue
        if stalled and self._complaint.due():
            milliseconds = self.options.timeout * 1000
            logger.warning(
                "redis: link %s does not answer within %.0f ms; nobody waits until it does", self.name, milliseconds
            )

    def _probe(self) -> None:
        """Ask whether it answers in time again: one PING after the other, each of which waits for `timeout`."""
        if self.up and self.stalled:
            probe = Reply()
            probe.then(self._probed)
            self.put(pack(("PING",)), probe)
            self.flush()

    def _probed(self, answer: Answer) -> None:
        if answer.error is None:
            self._set_stalled(False)
        else:
            self._probe()


class _Wire(asyncio.Protocol):
    """One connection of a link: so that the end of an old one is never taken for the end of the new one."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._transport: asyncio.Transport | None = None
        self.data_received = link.received  # type: ignore[method-assign]  # no frame between on the hot path

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not by isinstance: uvloop's transports are no subclasses of asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        self._link.made(self._transport)

    def connection_lost(self, error: Exception | None) -> None:
        assert self._transport is not None
        self._link.lost(self._transport, error)
