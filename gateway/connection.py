"""One client's connection: aiohttp's protocol with a short way through it.

short way, and aiohttp's own loop beside it
aiohttp's `start()` task sleeps on `_waiter` while the connection is idle; `_waiter is None` means "a request is
being handled". The short way parks that future for its own duration, so that whatever comes meanwhile is queued
by aiohttp exactly as behind a request of its own, and puts it back when it is done.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import RequestHandler, _ErrInfo

from gateway.forwarded import parse_ip
from gateway.malformed import malformed
from gateway.request import Head, Request
from gateway.response import REFUSED, Response, problem
from gateway.sending import drained
from gateway.store import Answer
from gateway.wire import Unsendable, send_whole

if TYPE_CHECKING:
    from gateway.plugin import Handler
    from gateway.server import Server

END_OF_HEAD: Final = b"\r\n\r\n"


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

    __slots__ = (
        "_between",
        "_first_piece",
        "_head_timer",
        "_keep_alive",
        "_parked",
        "_request",
        "_server",
        "_short_task",
        "peer",
        "trusted",
    )

    def __init__(self, server: Server, **options: Any) -> None:
        super().__init__(server, **options)
        self._server = server
        # per connection
        self.peer = ""
        self.trusted = False
        self._between = True
        """Whether the parser stands between two messages: only then may it be passed by."""
        # per request
        self._request: Request | None = None
        self._keep_alive = False
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
        request, self._request = self._request, None
        if request is not None:
            self._server.gone(request)
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
            self._between = False
            super().data_received(data)
            if self._messages and type(error := self._messages[-1][0]) is _ErrInfo:
                self._fail_body(error.exc)
            return
        if self._between and (head := self._server.heads.get(data)) is not None:
            self._request_count += 1
            self._begin(head)
            return
        self._parse(data)

    def _parse(self, data: bytes) -> None:
        """Bytes that no earlier request came with, on an idle connection."""
        assert self._parser is not None
        assert self._waiter is not None
        between, self._between = self._between, False
        try:
            messages, upgraded, tail = self._parser.feed_data(data)
        except HttpProcessingError as error:
            self._first_piece = data if self._head_timer is None else self._first_piece
            messages, upgraded, tail = [(_ErrInfo(400, error, error.message), EMPTY_PAYLOAD)], False, b""
        if not messages:
            self._start_head_timer(data)
            return
        if self._head_timer is not None:
            self._stop_head_timer()
        message, payload = messages[0]
        self._request_count += len(messages)
        if (
            payload is EMPTY_PAYLOAD
            and len(messages) == 1
            and not upgraded
            and type(message) is not _ErrInfo
            and not message.upgrade
            and message.method != "CONNECT"
            and self._server.short_way
        ):
            self._parser.message_consumed()
            try:
                head = self._server.head(message)
            except BadRequest as error:
                self._park()
                self._short_task = self._loop.create_task(self._refuse(error))
                return
            # A head ends with the first empty line: if that is there, and the end of what came, nothing is left in the
            # parser. Otherwise something may be, as when the line came in two pieces.
            if 0 <= data.find(END_OF_HEAD) == len(data) - len(END_OF_HEAD):
                self._between = True
                if between:
                    self._server.heads.put(data, head)
            self._begin(head)
            return
        self._messages.extend(messages)
        if len(self._messages) >= self._max_msg_queue_size and not self._buffer_paused:
            self._pause_reading_for_buffer()
        self._upgraded = upgraded
        if upgraded and tail:
            self._message_tail = tail
        self._waiter.set_result(None)

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

    # -- the short way -----------------------------------------------------------------------------

    def _begin(self, head: Head) -> None:
        """Handle a request with this head, at once as far as that is possible."""
        server = self._server
        request = server.request(self, head)
        self._keep_alive = not head.should_close
        try:
            response = head.route.chain.start(request)
        except Exception as error:
            response = server.failure(request, error)
        self._request = request
        self._go_on(request, response)

    def _go_on(self, request: Request, response: Response | None) -> None:
        """Send the answer, or wait for what its chain waits for."""
        if response is None:
            if self._parked is None:
                self._park()
            if request.waiting is not None:
                request.waiting.then(self._woken)
            else:
                self._short_task = self._loop.create_task(self._answer(request, request.route.chain.rest))
            return
        body = response.body
        if type(body) is bytes and not self._paused and self.transport is not None:
            server = self._server
            keep_alive = self._keep_alive and not server.draining
            request.connection = None
            try:
                size = send_whole(self, request, response, body, keep_alive)
            except Unsendable as error:
                response = server.failure(request, error)
                size = send_whole(self, request, response, whole_body(response), keep_alive)
            if not self._paused:
                self._request = None
                if self._parked is None:
                    if server.observer is not None:
                        server.observer.record(request, response.status, size, response.outcome)
                    self._done(keep_alive)
                else:
                    server.ended(request, response.status, size, response.outcome)
                    self._end_short_way(keep_alive)
                return
            rest = self._taken(request, response, size, keep_alive)  # type: ignore[unreachable]  # sending may pause
        else:
            rest = self._answer(request, partial(_made, response))
        if self._parked is None:
            self._park()
        self._short_task = self._loop.create_task(rest)

    def _park(self) -> None:
        """From now on what comes is queued: a request is being handled. `Server.ended` or `left` must follow."""
        self._server.began()
        self._waiter, self._parked = None, self._waiter
        self._request_in_progress = True

    def _woken(self, answer: Answer) -> None:
        """Redis has replied to what the request waited for."""
        request = self._request
        if request is None:
            return  # the connection was lost meanwhile
        try:
            response = request.route.chain.go_on(request)
        except Exception as error:
            response = self._server.failure(request, error)
        try:
            self._go_on(request, response)
        except Exception:
            self.force_close()  # a plugin's answer that is none: nothing more can be said here
            raise

    async def _answer(self, request: Request, respond: Handler) -> None:
        """What cannot be done at once: respond, and send."""
        self._request = None  # from here on the server is told by `answer`
        keep_alive = False
        try:
            keep_alive = await self._server.answer(self, request, respond, self._keep_alive)
        finally:
            self._end_short_way(keep_alive)

    async def _taken(self, request: Request, response: Response, size: int, keep_alive: bool) -> None:
        """What was sent at once does not fit into the client's window: wait until it is taken."""
        self._request = None
        taken = False
        try:
            await drained(self, self._server.table.send_timeout)
            taken = True
        except ConnectionError:
            pass  # the connection is closed below
        finally:
            self._server.ended(request, response.status, size, response.outcome)
            self._end_short_way(taken and keep_alive)

    async def _refuse(self, error: BadRequest) -> None:
        try:
            await self._server.refuse(self, error)
        finally:
            self._server.left()
            self._end_short_way(False)

    def _end_short_way(self, keep_alive: bool) -> None:
        self._short_task = None
        self._request_in_progress = False
        if self._handler_waiter is not None and not self._handler_waiter.done():
            self._handler_waiter.set_result(None)
        waiter, self._parked = self._parked, None
        if waiter is None:
            return  # the connection was lost meanwhile
        self._waiter = waiter
        self._done(keep_alive)
        if self._messages and not waiter.done():
            waiter.set_result(None)

    def _done(self, keep_alive: bool) -> None:
        """The connection is idle again, or at its end."""
        if not keep_alive or self._close or self._force_close:
            self.force_close()
            return
        self._next_keepalive_close_time = close_time = self._loop.time() + self._keepalive_timeout
        if self._keepalive_handle is None:
            self._keepalive_handle = self._loop.call_at(close_time, self._process_keepalive)

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
        try:
            send_whole(self, _UNPARSED, response, whole_body(response), keep_alive=False)
            if self._paused:
                await drained(self, self._server.table.send_timeout)
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
        response = malformed(exc, self._first_piece, self._server.table)
        self._first_piece = b""
        return _Late(self, response)


class _Late(Done):
    """A refusal that is sent when aiohttp asks for it."""

    __slots__ = ("_connection", "_response")

    def __init__(self, connection: Connection, response: Response) -> None:
        super().__init__(keep_alive=False)
        self._connection = connection
        self._response = response

    async def write_eof(self) -> None:
        await self._connection.send_problem(self._response)


def whole_body(response: Response) -> bytes:
    """The body of an answer that the gateway has made itself."""
    assert isinstance(response.body, bytes)
    return response.body


async def _made(response: Response, request: Request) -> Response:
    """A `Handler` for what has its answer already."""
    return response


_UNPARSED: Final = Head()
_UNPARSED.method, _UNPARSED.version = "GET", (1, 1)
