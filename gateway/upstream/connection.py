"""One connection to an upstream: aiohttp's protocol and C parser, without its session and request objects.

rules
1. An answer belongs to the request that was asked for it: bytes that come while nothing was asked end the
   connection. So do bytes beyond an answer's end, which nobody reads (RFC 9112, section 6.3): the answer is good.
2. Whatever ends a connection also fails the body that is being read from it: a cut body never looks complete.
3. A small plain answer is delivered whole: its pieces are held until the last one is there, or for `PROMPT_SECONDS`.
   The connection's parser does not see it and stays where it was, between two answers; it is fed with all others.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from aiohttp import ClientPayloadError, ServerDisconnectedError
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError

if TYPE_CHECKING:
    from aiohttp.connector import Connection as Lease

    from gateway import config
    from gateway.upstream.heads import AnswerHead
    from gateway.upstream.pool import Pool, Slots

# Bytes of an answer's body read ahead of the client: twice this at most.
READ_AHEAD: Final = 64 << 10
# Bytes: a body this long is worth waiting for, since bytes are cheaper to pass on than a stream...
SMALL_BODY: Final = READ_AHEAD
# ...for so many seconds: long enough for the second packet of an answer, too short to be felt.
PROMPT_SECONDS: Final = 0.02
END_OF_HEAD: Final = b"\r\n\r\n"
# Header lines of an answer. Many Set-Cookie lines are the usual reason for a long header.
MAX_HEADERS: Final = 256


def limits(table: config.Upstream) -> dict[str, Any]:
    """What a parser of answers accepts."""
    return {"max_line_size": table.max_header, "max_field_size": table.max_header, "max_headers": MAX_HEADERS}


class UpstreamBroken(Exception):
    """The upstream's answer ended early or is not valid HTTP; what was received of it must not look complete."""


class Held:
    """A small plain answer that is not wholly there yet."""

    __slots__ = ("head", "missing", "pieces", "timer")

    timer: asyncio.TimerHandle

    def __init__(self, head: AnswerHead, piece: bytes, missing: int) -> None:
        self.head = head
        self.pieces = [piece]
        self.missing = missing


class UpstreamConnection(ResponseHandler):
    """One connection to the upstream.

    Args:
        pool: gave it out and takes it back.
        table: of the upstream.
    """

    lease: Lease
    """Keeps it open: aiohttp's connector has opened it."""

    def __init__(self, pool: Pool, table: config.Upstream, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._pool = pool
        self._read_head = pool.heads.read
        self._silence = table.read_timeout
        self._limits = limits(table)
        # per connection
        self.slots: Slots | None = None
        """Where it holds a place while it is in use."""
        self.asked = 0
        self._watch: asyncio.TimerHandle | None = None
        self._tunnel = False
        self._spoilt = False
        # per request
        self.answered: Callable[[AnswerHead | None, bytes], None] | None = None
        """Called once, with a plain answer, or with None when there is something else to `read`."""
        self.heard = False
        self._final = False
        """Whether the head of the answer itself was read, behind all interim ones."""
        self._last = b""
        self._held: Held | None = None
        self._busy = False
        self._deadline = math.inf

    def begin(self, *, without_body: bool) -> None:
        """Get ready for one answer.

        Args:
            without_body: its head is all of it (HEAD).
        """
        if self._parser is None or without_body != self._skip_payload:
            self.set_response_params(
                skip_payload=without_body,
                read_until_eof=True,
                auto_decompress=False,
                read_bufsize=READ_AHEAD,
                **self._limits,
            )
        self.asked += 1
        self.heard = self._final = False

    def become_tunnel(self) -> None:
        """From now on silence is allowed and each direction ends on its own."""
        self._tunnel = True
        self._drop_timeout()

    def send(self, head: bytes) -> asyncio.Transport:
        """Send a request's head; from now on an answer may come.

        Raises:
            ServerDisconnectedError: the connection has ended.
        """
        transport = self.transport
        if transport is None:
            raise ServerDisconnectedError
        self._busy = True
        transport.write(head)
        return transport

    def release(self) -> None:
        """Give the connection back after a whole answer; it is closed if it cannot serve another request."""
        # A plain answer has left the parser where it was.
        if self._busy:
            if self.should_close or self._parser is None:
                self._should_close = True
            elif self._parser.feed_eof() is not None:
                self._surplus()  # the start of another head
        # Nothing may come until the next request.
        self._busy = False
        self._deadline = math.inf
        self._pool.give_back(self, usable=not self._should_close)

    def discard(self) -> None:
        """Close the connection; nothing happens if that, or `release`, was done already."""
        self.answered = None
        self._pool.give_back(self, usable=False)

    # -- asyncio and aiohttp call these ------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._pool.open += 1

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._watch is not None:
            self._watch.cancel()
        if self._held is not None:
            self._let_go(self._held)
        payload = self._payload
        if exc is not None and payload is not None and not payload.is_eof():
            # aiohttp takes any end of the connection for the end of a body that has no other.
            payload.set_exception(ClientPayloadError(f"connection lost: {exc}"))
        super().connection_lost(exc)
        self._pool.lost(self)

    def data_received(self, data: bytes) -> None:
        if not self._busy:
            if self.transport is not None:
                self.transport.abort()
            return
        held = self._held
        if held is not None:
            held.pieces.append(data)
            held.missing -= len(data)
            if held.missing <= 0:
                self._let_go(held)
            return
        if not self.heard and not self._skip_payload:
            self.heard = True
            end = data.find(END_OF_HEAD) + 4
            head = self._read_head(data[:end]) if end > 3 else None
            if head is not None:
                missing = head.size - len(data) + end
                if missing <= 0:
                    self._deliver(head, data[end:])
                    return
                if head.size <= SMALL_BODY:
                    self._held = held = Held(head, data, missing)
                    held.timer = self._loop.call_later(PROMPT_SECONDS, self._let_go, held)
                    return
        self.heard = True
        self._parse(data)

    def _parse(self, data: bytes) -> None:
        # Heads one by one: an error, which may lie behind the answer, takes all with it that was fed at once.
        # The end of a head may come in two pieces.
        data, start = self._last + data, len(self._last)
        while True:
            found = -1 if self._final else data.find(END_OF_HEAD, max(0, start - 3))
            end = found + 4 if found >= 0 else len(data)
            super().data_received(data[start:end])
            start = end
            if start == len(data) or self._exception is not None:
                break
        self._last = b"" if self._final else data[-3:]

    def _deliver(self, head: AnswerHead, body: bytes) -> None:
        self._busy = False
        self._deadline = math.inf
        if head.should_close:
            self._should_close = True
        if len(body) > head.size:
            body = body[: head.size]
            self._surplus()
        answered, self.answered = self.answered, None
        if answered is not None:
            answered(head, body)
        else:
            whole: Any = (head, body)
            super().feed_data(whole)

    def _surplus(self) -> None:
        """More has come than the answer, which is not harmed by what the parser thinks of the rest."""
        if not self._spoilt:
            self._spoilt = self._should_close = True
            self._parser = None
            self._pool.surplus()

    def _let_go(self, held: Held) -> None:
        """What was held is a whole answer, or it is the parser's after all."""
        self._held = None
        held.timer.cancel()
        data = b"".join(held.pieces)
        if held.missing > 0:
            self._parse(data)
        else:
            self._deliver(held.head, data[len(data) + held.missing - held.head.size :])

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
        elif self._final and isinstance(exc, HttpProcessingError):
            self._surplus()
        super().set_exception(exc, exc if exc_cause is None else exc_cause)
        self._tell()

    def feed_data(self, data: Any, size: int = 0) -> None:
        if self._final:
            self._surplus()
            return
        status = data[0].code
        self._final = status >= 200 or status == 101
        super().feed_data(data, size)
        self._tell()

    def _tell(self) -> None:
        answered, self.answered = self.answered, None
        if answered is not None:
            answered(None, b"")

    def resume_reading(self, resume_parser: bool = True) -> None:
        # Called for each piece that is read; most never met a pause.
        if self._reading_paused:
            super().resume_reading(resume_parser)

    # One timer per connection that looks at a deadline, instead of one made and cancelled per piece.

    def _reschedule_timeout(self) -> None:
        if self._tunnel or not self._busy:
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
