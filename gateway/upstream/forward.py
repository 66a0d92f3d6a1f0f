"""The last handler of each chain: request out, answer in.

    request ─▶ head ─▶ connection ─▶ answer's head ─▶ whole small body, or a stream of pieces, or a tunnel
                          ▲
              body ───────┘ in a task of its own: an upstream may answer before it has heard all

rules
1. Nothing is held whole but small bodies that are there already, or come at once (`gateway.upstream.connection`).
2. A request is tried again once, and only if a kept connection was closed under it before a byte of an answer,
   the method is idempotent (RFC 9110, section 9.2.2) and it has no body.
3. What went wrong is told to the log; the client learns 502 or 504.
4. Interim answers (1xx) are passed on at once, but for 100: the client gets that from the server.
5. A connection is released after a whole answer to a wholly sent request; in any other case it is closed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from http import HTTPStatus
from typing import Any, Final

from aiohttp import ClientConnectionError, ClientError, ClientPayloadError, hdrs
from aiohttp.client_exceptions import ClientConnectorError
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.streams import StreamReader
from yarl import URL

from gateway import config
from gateway.plugin import problem
from gateway.request import BodyBroken, Request, RequestBody
from gateway.response import Response
from gateway.upstream.asked import Asked, answered
from gateway.upstream.connection import UpstreamBroken, UpstreamConnection
from gateway.upstream.heads import NO_BODY, AnswerHead, RequestHeads
from gateway.upstream.pool import Pool
from gateway.upstream.tunnel import Tunnel
from gateway.wire import send_interim

logger = logging.getLogger("gateway.upstream")

# 1xx answers before the final one; more are an upstream gone wild.
MAX_INTERIM: Final = 16
# Those that aiohttp's parser knows to be without a body, whatever their head says.
BODILESS: Final = frozenset({102, 103})
# Seconds between two lines in the log about one upstream's failures.
LOG_PAUSE_SECONDS: Final = 1.0

IDEMPOTENT: Final = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"})
H2C: Final = "h2c"


class Upstream:
    """An API that answers for real; the last `Handler` of the chains of its routes.

    Args:
        name: of its `[upstreams.NAME]` table.
        table: that table.
        via: this gateway's name in `Via`.
    """

    def __init__(self, name: str, table: config.Upstream, *, via: str = "gateway") -> None:
        url = URL(table.url)
        authority = url.host_port_subcomponent or ""
        self.name = name
        self.requests = 0
        self.failures = 0
        """Requests without a usable answer, time-outs among them, and answers that broke off."""
        self.timeouts = 0
        self._table = table
        self._via_line = f"Via: 1.1 {via}\r\n".encode()
        fixed = {"keep": "", "upstream": authority}.get(table.host, table.host)
        self._heads = RequestHeads(
            prefix=url.raw_path.rstrip("/"),
            host=f"Host: {fixed}\r\n".encode() if fixed else None,
            default_host=f"Host: {authority}\r\n".encode(),
            via=via,
        )
        self._loop = asyncio.get_running_loop()
        self._pool = Pool(table, self._via_line, self._surplus)
        self._logged = -LOG_PAUSE_SECONDS
        self._unlogged = 0

    def __repr__(self) -> str:
        return f"<Upstream {self.name} {self._table.url}, {self.connections} connections>"

    @property
    def connections(self) -> int:
        """How many connections are open now, idle ones and tunnels too."""
        return self._pool.open

    async def start(self) -> None:
        """Nothing is opened before the first request."""

    async def stop(self) -> None:
        """Close all connections."""
        await self._pool.close()

    def begin(self, request: Request) -> Asked | None:
        """Send a request at once; None if that cannot be done without waiting."""
        if request.body is not None or request.upgrade is not None:
            return None
        head = self._heads.head(request)
        connection = self._pool.take()
        if connection is None:
            return None
        self.requests += 1
        self._pool.send_soon(connection, head)
        return Asked(request, connection, head)

    async def __call__(self, request: Request) -> Response:
        """The upstream's answer, or 502 or 504.

        Raises:
            BodyTooLarge, BodyTimeout, BodyBroken: the client's body, before an answer.
        """
        asked, request.asked = request.asked, None
        if asked is None:
            self.requests += 1
            started = time.monotonic()  # the loop's clock has whole milliseconds
        else:
            started = asked.started
        try:
            return await self._forward(request, asked)
        except TimeoutError as error:
            self.timeouts += 1
            self.failed(error)
            return _problem(504, "The server behind this gateway did not answer in time.")
        except (ClientError, HttpProcessingError, OSError, UpstreamBroken) as error:
            self.failed(error)
            return _problem(502, "The server behind this gateway did not give a usable answer.")
        finally:
            request.upstream_seconds = time.monotonic() - started

    def failed(self, error: BaseException) -> None:
        """Count a failure, and log it unless one was logged within the last second."""
        self.failures += 1
        self._complain(_reason(error))

    def _surplus(self) -> None:
        self._complain("more bytes than its answer has; they were discarded and the connection closed")

    def _complain(self, what: str) -> None:
        now = self._loop.time()
        if now - self._logged < LOG_PAUSE_SECONDS:
            self._unlogged += 1
            return
        more = f" (and {self._unlogged} more since the last line)" if self._unlogged else ""
        self._logged, self._unlogged = now, 0
        logger.warning("upstream %s: %s%s", self.name, what, more)

    async def _forward(self, request: Request, asked: Asked | None) -> Response:
        upgrade = _upgrade(request)
        if asked is not None:
            head, connection = asked.head, asked.connection
        else:
            head = self._heads.head(request, upgrade)
            connection = await self._pool.acquire(single_use=upgrade is not None)
        try:
            return await self._exchange(connection, request, head, upgrade, begun=asked is not None)
        except ClientConnectionError as error:
            if (
                connection.asked == 1
                or connection.heard
                or request.body is not None
                or request.method not in IDEMPOTENT
                or isinstance(error, TimeoutError)
            ):
                raise
        connection = await self._pool.acquire(single_use=True)
        return await self._exchange(connection, request, head, upgrade)

    async def _exchange(
        self,
        connection: UpstreamConnection,
        request: Request,
        head: bytes,
        upgrade: bytes | None,
        *,
        begun: bool = False,
    ) -> Response:
        """One request and its answer on a connection, which is given back, closed, or handed to the answer's body."""
        sender = None
        try:
            if not begun:
                connection.begin(without_body=request.method == "HEAD")
                if request.body is None:
                    connection.send(head)
                    connection.start_timeout()
                else:
                    sending = send(connection, head, request.body, self._table.read_timeout)
                    sender = self._loop.create_task(sending)
            message: Any
            payload: Any
            message, payload = await connection.read()
            if type(message) is AnswerHead:
                await finish(connection, sender)
                return answered(message, payload)
            interim = 0
            while message.code < 200 and (message.code != 101 or upgrade is None):
                interim += 1
                if interim > MAX_INTERIM:
                    raise UpstreamBroken(f"more than {MAX_INTERIM} interim answers")
                self._interim(request, message)
                if sender is None or sender.done():
                    connection.start_timeout()
                message, payload = await connection.read()
            return await self._answer(connection, request, message, payload, sender)
        except BaseException:
            connection.discard()
            if sender is not None:
                await _stopped(sender)
            raise

    def _interim(self, request: Request, message: Any) -> None:
        status = message.code
        if status < 100 or status == 101:
            raise UpstreamBroken(f"status {status}, which was not asked for")
        if status == 100:
            return
        head = self._head(message)
        if status not in BODILESS and (head.length is not None or message.chunked):
            raise UpstreamBroken(f"status {status} with a body")
        send_interim(request, status, head.lines)

    def _head(self, message: Any) -> AnswerHead:
        try:
            return AnswerHead(message, self._via_line)
        except ValueError as error:
            raise UpstreamBroken(str(error)) from error

    async def _answer(
        self,
        connection: UpstreamConnection,
        request: Request,
        message: Any,
        payload: StreamReader,
        sender: asyncio.Task[None] | None,
    ) -> Response:
        head = self._head(message)
        if head.status == 101:
            if not connection.upgraded:
                raise UpstreamBroken("status 101 without the protocol it changes to")
            return Response.prebuilt(101, head.lines, head.names, Tunnel(connection), reason=head.reason)
        failure = payload.exception()
        if failure is not None:
            raise failure
        if not payload.is_eof():
            return answered(head, AnswerBody(self, connection, payload, sender))
        whole = payload.read_nowait()
        await finish(connection, sender)
        if request.method != "HEAD" and head.status not in NO_BODY:
            head.length = len(whole)
        return answered(head, whole)


class AnswerBody:
    """An answer's body, piece by piece as the upstream sends it.

    The request's body goes on being sent meanwhile, if the upstream has answered before it was complete.
    """

    __slots__ = ("_connection", "_payload", "_sender", "_upstream")

    def __init__(
        self,
        upstream: Upstream,
        connection: UpstreamConnection,
        payload: StreamReader,
        sender: asyncio.Task[None] | None,
    ) -> None:
        self._upstream = upstream
        self._connection: UpstreamConnection | None = connection
        self._payload = payload
        self._sender = sender

    def __aiter__(self) -> AnswerBody:
        return self

    async def __anext__(self) -> bytes:
        """What has come since the last piece; waits only if that is nothing.

        Raises:
            UpstreamBroken: the body ended early, stopped for `read_timeout`, or was framed wrongly.
        """
        connection = self._connection
        if connection is None:
            raise StopAsyncIteration
        try:
            piece = await self._payload.readany()
        except Exception as error:
            await self.aclose()
            if isinstance(error, TimeoutError):
                self._upstream.timeouts += 1
            self._upstream.failed(error)
            raise UpstreamBroken(_reason(error)) from error
        if self._payload.at_eof():
            # At once, not when the reader comes back for more: another request may be waiting for the connection.
            self._connection = None
            await finish(connection, self._sender)
        if not piece:
            raise StopAsyncIteration
        return piece

    async def aclose(self) -> None:
        """Nobody wants the rest: the connection is closed unless all of it was read."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.discard()
            if self._sender is not None:
                await _stopped(self._sender)


async def send(connection: UpstreamConnection, head: bytes, body: RequestBody, timeout: float) -> None:
    """Send a request with a body. Failures are told to whoever waits for the answer.

    Args:
        timeout: seconds the upstream may refuse to take a piece.
    """
    try:
        transport = connection.send(head)
        sent = 0
        async for piece in body:
            if not piece:
                continue  # an empty chunk would be the last one
            if transport.is_closing():
                return  # the reader of the answer has been told
            sent += len(piece)
            transport.write(piece if body.length is not None else b"%x\r\n%b\r\n" % (len(piece), piece))
            if connection.writing_paused:
                try:
                    async with asyncio.timeout(timeout):
                        await connection._drain_helper()
                except TimeoutError:
                    raise TimeoutError(f"it took nothing of the request's body for {timeout:g} s") from None
        if body.length is None:
            transport.write(b"0\r\n\r\n")
        elif sent != body.length:
            raise BodyBroken(f"{sent} bytes instead of {body.length}")
        connection.start_timeout()
    except Exception as error:
        connection.set_exception(error)


async def finish(connection: UpstreamConnection, sender: asyncio.Task[None] | None) -> None:
    """After a whole answer: the connection is kept if the request was wholly sent too."""
    if sender is None or sender.done():
        connection.release()
    else:
        connection.discard()
        await _stopped(sender)


async def _stopped(sender: asyncio.Task[None]) -> None:
    # Waited for: the server may read the client's body itself next, and two cannot.
    sender.cancel()
    await asyncio.wait([sender])


def _upgrade(request: Request) -> bytes | None:
    """The `Upgrade` field to send. h2c would carry requests past every plugin: such a request stays HTTP/1.1."""
    if request.upgrade is None or request.body is not None or H2C in request.upgrade:
        return None
    return ", ".join(request.headers.getall(hdrs.UPGRADE)).encode("utf-8", "surrogateescape")


def _problem(status: int, detail: str) -> Response:
    return problem(status, HTTPStatus(status).phrase, detail)


def _reason(error: BaseException) -> str:
    """What went wrong, for the log: without any byte that the upstream sent, which may be secret."""
    if isinstance(error, UpstreamBroken | ClientConnectorError):
        return str(error)
    if isinstance(error, HttpProcessingError):
        return f"its answer is not valid HTTP ({type(error.__cause__ or error).__name__})"
    if isinstance(error, ClientPayloadError):
        return "its answer broke off"
    if isinstance(error, TimeoutError):
        return str(error) or "no connection within connect_timeout"
    return f"{type(error).__name__}: the connection was closed before an answer"
