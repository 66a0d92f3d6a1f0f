"""One client's connection: aiohttp's protocol with a short way through it.

short way, and aiohttp's own loop beside it
aiohttp's `start()` task sleeps on `_waiter` while the connection is idle; `_waiter is None` means "a request is
being handled". The short way parks that future for its own duration, so that whatever comes meanwhile is queued
by aiohttp exactly as behind a request of its own, and puts it back when it is done.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import RequestHandler, _ErrInfo

from gateway.forwarded import parse_ip
from gateway.request import Request
from gateway.response import REFUSED, Response, problem
from gateway.wire import send

if TYPE_CHECKING:
    from gateway.server import Server


class BadRequest(Exception):
    """The request cannot be understood in one way only: it is refused, never forwarded."""


class Done:
    """What aiohttp takes for a response: it is sent already."""

    __slots__ = ("keep_alive",)

    def __init__(self, keep_alive: bool) -> None:
        self.keep_alive = keep_alive

    async def prepare(self, request: Any) -> None: ...

    async def write_eof(self) -> None: ...


class Connection(RequestHandler):
    """One client's connection."""

    __slots__ = ("_first_piece", "_head_timer", "_parked", "_server", "_short_task", "peer", "trusted")

    def __init__(self, server: Server, **options: Any) -> None:
        super().__init__(server, **options)
        self._server = server
        # per connection
        self.peer = ""
        self.trusted = False
        # per request
        self._parked: asyncio.Future[None] | None = None
        self._short_task: asyncio.Task[None] | None = None
        self._head_timer: asyncio.TimerHandle | None = None
        self._first_piece = b""

    @property
    def idle(self) -> bool:
        """Nothing is being handled, and no part of a request is here."""
        return self._waiter is not None and not self._messages and self._head_timer is None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        server = self._server
        name = transport.get_extra_info("peername")
        if isinstance(name, tuple):
            address = parse_ip(name[0])
            self.peer = str(address) if address is not None else str(name[0])
            self.trusted = self.peer in server.trusted
        if len(server._connections) > server.table.max_connections:
            server.refused_connections += 1
            self.force_close()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._stop_head_timer()
        if self._parked is not None:
            # aiohttp ends its own loop by this future: it must find it.
            self._waiter, self._parked = self._parked, None
        if self._short_task is not None:
            self._short_task.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        waiter = self._waiter
        if (
            waiter is None
            or self._messages
            or self._upgraded
            or self._payload_parser is not None
            or self._close
            or self._force_close
            or waiter.done()
        ):
            super().data_received(data)
            if self._messages and type(error := self._messages[-1][0]) is _ErrInfo:
                self._fail_body(error.exc)
            return
        assert self._parser is not None
        try:
            messages, upgraded, tail = self._parser.feed_data(data)
        except HttpProcessingError as error:
            self._first_piece = self._first_piece or data
            messages, upgraded, tail = [(_ErrInfo(400, error, error.message), EMPTY_PAYLOAD)], False, b""
        if not messages:
            self._start_head_timer(data)
            return
        if self._head_timer is not None:
            self._stop_head_timer()
        message, payload = messages[0]
        if (
            payload is EMPTY_PAYLOAD
            and len(messages) == 1
            and not upgraded
            and type(message) is not _ErrInfo
            and not message.upgrade
            and message.method != "CONNECT"
            and self._server.short_way
        ):
            self._request_count += 1
            self._parser.message_consumed()
            self._waiter, self._parked = None, waiter
            self._request_in_progress = True
            self._short_task = self._loop.create_task(self._short_way(message))
            return
        self._request_count += len(messages)
        self._messages.extend(messages)
        if len(self._messages) >= self._max_msg_queue_size and not self._buffer_paused:
            self._pause_reading_for_buffer()
        self._upgraded = upgraded
        if upgraded and tail:
            self._message_tail = tail
        waiter.set_result(None)

    def _fail_body(self, error: BaseException | None) -> None:
        """Tell the reader of a body in progress that its framing is broken: aiohttp's parser leaves it waiting."""
        request = self._current_request
        if request is not None and error is not None and not request._payload.is_eof():
            request._payload.set_exception(error)

    def eof_received(self) -> bool:  # type: ignore[override]
        """A tunnel's client that has said all may still listen; any other one is gone."""
        if self._payload_parser is None:
            return False
        self._payload_parser.feed_eof()
        return True

    async def _short_way(self, message: Any) -> None:
        server = self._server
        keep_alive = False
        try:
            try:
                request = server.request(self, message)
            except BadRequest as error:
                keep_alive = await server.refuse(self, message, error)
            else:
                keep_alive = await server.answer(self, request, not message.should_close)
        finally:
            self._end_short_way(keep_alive)

    def _end_short_way(self, keep_alive: bool) -> None:
        self._short_task = None
        self._request_in_progress = False
        if self._handler_waiter is not None and not self._handler_waiter.done():
            self._handler_waiter.set_result(None)
        waiter, self._parked = self._parked, None
        if waiter is None:
            return  # the connection was lost meanwhile
        self._waiter = waiter
        if not keep_alive or self._close or self._force_close:
            self.force_close()
            return
        self._next_keepalive_close_time = close_time = self._loop.time() + self._keepalive_timeout
        if self._keepalive_handle is None:
            self._keepalive_handle = self._loop.call_at(close_time, self._process_keepalive)
        if self._messages and not waiter.done():
            waiter.set_result(None)

    # -- what goes wrong before there is a request ---------------------------------------------------

    def _start_head_timer(self, data: bytes) -> None:
        """The first piece of a request's head has come: the rest must follow in time."""
        if self._head_timer is None:
            self._first_piece = data
            self._head_timer = self._loop.call_later(self._server.table.header_timeout, self._head_too_slow)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_too_slow(self) -> None:
        self._head_timer = None
        if self._waiter is not None and self.transport is not None:
            self._loop.create_task(self._close_with(problem(408, "Request timeout", "The request came too slowly.")))

    async def _close_with(self, response: Response) -> None:
        await self.send_problem(response)
        self.force_close()

    async def send_problem(self, response: Response) -> None:
        """Answer something that is no usable request, as the last thing on this connection."""
        request = Request.__new__(Request)
        request.method, request.version = "GET", (1, 1)
        try:
            await send(self, request, response, keep_alive=False, send_timeout=self._server.table.send_timeout)
        except ConnectionError:
            return
        self._record_refusal(response)

    def _record_refusal(self, response: Response) -> None:
        if self._server.observer is not None:
            self._server.observer.record_unparsed(self.peer, response.status, REFUSED)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> Any:
        """aiohttp asks here what to answer to malformed HTTP; it closes the connection afterwards."""
        response = self._parse_problem(exc)
        self._first_piece = b""
        return _Late(self, response)

    def _parse_problem(self, error: BaseException | None) -> Response:
        table = self._server.table
        if isinstance(error, LineTooLong):
            line = self._first_piece.partition(b"\r\n")[0]
            if len(line) > table.max_request_line:
                return problem(
                    414, "URI too long", f"The request target is longer than {table.max_request_line} bytes."
                )
            return problem(431, "Request header fields too large", f"A header is longer than {table.max_header} bytes.")
        if isinstance(error, HttpProcessingError) and "Too many headers" in error.message:
            return problem(431, "Request header fields too large", f"More than {table.max_headers} header fields.")
        return problem(400, "Bad request", "The request is not valid HTTP.")


class _Late(Done):
    """A refusal that is sent when aiohttp asks for it."""

    __slots__ = ("_connection", "_response")

    def __init__(self, connection: Connection, response: Response) -> None:
        super().__init__(keep_alive=False)
        self._connection = connection
        self._response = response

    async def write_eof(self) -> None:
        await self._connection.send_problem(self._response)
