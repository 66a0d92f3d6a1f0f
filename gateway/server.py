"""aiohttp's connection -> Request -> chain -> bytes.

Two ways in, one inside. A request without body and upgrade that meets an idle connection takes the *short way*:
straight from the read that brought it to the bytes of its answer, without aiohttp's request and response objects, and
without a task as long as nothing needs one. Every other one takes aiohttp's own way. Both (`gateway.connection`)
build the same `Request`, go down the same chain, and write through `gateway.wire`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections.abc import Mapping
from typing import Any, Final

from aiohttp import web
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web_protocol import RequestHandler

from gateway.body import ClientBody
from gateway.config import Server as ServerTable
from gateway.connection import BadRequest, Connection, Done
from gateway.fixed import FixedRoutes
from gateway.forwarded import TrustedProxies
from gateway.heads import Heads
from gateway.observe import Observer
from gateway.plugin import Handler
from gateway.request import BodyBroken, BodyTimeout, BodyTooLarge, Head, Request
from gateway.response import FAILED, Response, header_line, problem
from gateway.routes import NO_PARAMS, MethodNotAllowed, Route, Routes
from gateway.sending import Sent, send
from gateway.store import Redis
from gateway.wire import Unsendable

logger = logging.getLogger("gateway.server")

MAX_KNOWN_HOSTS: Final = 1024
# A client that is still sending a body nobody wants gets this long to read why (nginx lingers 5 s).
LINGER_SECONDS: Final = 2.0
DRAIN_GRACE_SECONDS: Final = 0.5
DRAIN_LOOK_SECONDS: Final = 0.02
VERSIONS: Final = ((1, 1), (1, 0))
_HOST: Final = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")
_ABSOLUTE: Final = re.compile(r"https?://([^/?#]+)(.*)", re.IGNORECASE | re.DOTALL)
H2C: Final = "h2c"
CLIENT_GONE: Final = 499


class Server(web.Server):
    """All connections of one worker.

    Args:
        table: the configuration's `[server]`.
        routes: where requests go.
        redis: what late questions of plugins go to.
        observer: told of each answer.
        node: begins each request id; unique in the fleet.
        short_way: False sends every request aiohttp's own way (`GATEWAY_SHORT_WAY=0`).
    """

    def __init__(
        self,
        table: ServerTable,
        routes: Routes,
        redis: Redis,
        observer: Observer | None,
        *,
        node: str = "gw",
        short_way: bool | None = None,
    ) -> None:
        super().__init__(
            self._long_way,
            handler_cancellation=True,
            access_log=None,
            keepalive_timeout=table.keepalive_timeout,
            max_line_size=table.max_request_line,
            max_field_size=table.max_header,
            max_headers=table.max_headers,
            auto_decompress=False,
            lingering_time=LINGER_SECONDS,
        )
        self.table = table
        self.routes = routes
        self.redis = redis
        self.observer = observer
        self.short_way = os.environ.get("GATEWAY_SHORT_WAY") != "0" if short_way is None else short_way
        self.trusted = TrustedProxies(table.trusted_proxies)
        self.draining = False
        self.in_flight = 0
        self.refused_connections = 0
        self._node = node
        self._number = 0
        self.heads = Heads()
        self._fixed = FixedRoutes(redis)
        self._hosts: dict[str, str] = {}
        self._quiet = asyncio.Event()

    def __call__(self) -> RequestHandler:
        return Connection(self, loop=self._loop, **self._kwargs)

    # -- a request ---------------------------------------------------------------------------------

    def head(self, message: Any) -> Head:
        """What the parser's message means, and where it leads.

        Raises:
            BadRequest: its target or Host is not one thing only.
        """
        head = Head()
        head.method = message.method
        head.version = message.version
        head.headers = headers = message.headers
        head.raw_headers = message.raw_headers
        head.should_close = message.should_close
        head.host_line = None
        head.notes = {}
        if message.version not in VERSIONS:
            raise BadRequest("the protocol version is neither HTTP/1.0 nor HTTP/1.1")
        target = message.path
        if target[:1] != "/":
            target = self._absolute(head, target)
        else:
            head.host = self._host(headers.get("Host"), message.version)
        if "#" in target:
            raise BadRequest("the request target has a fragment")
        head.target = target
        head.path, _, head.query = target.partition("?")
        head.route, head.params = self._lead(head)
        return head

    def _lead(self, head: Head) -> tuple[Route, Mapping[str, str]]:
        if head.path == "*":
            return self._fixed.star, NO_PARAMS
        try:
            return self.routes.find(head.host, head.path, head.method) or (self._fixed.nowhere, NO_PARAMS)
        except MethodNotAllowed as error:
            return self._fixed.not_allowed(error.allowed), NO_PARAMS

    def request(self, connection: Connection, head: Head) -> Request:
        """A request with this head, without body."""
        self._number = number = self._number + 1
        # Not the loop's clock: uvloop's has whole milliseconds and stands still during a tick.
        name = f"{self._node}-{number:x}"
        request = Request(head, self.redis, name, time.monotonic(), connection.peer, connection)
        if connection.trusted:
            request.state["trusted"] = True
            request.state["peer"] = connection.peer
            request.client = self.trusted.client_of(connection.peer, head.headers)
            if (proto := head.headers.get("X-Forwarded-Proto", "").lower()) in ("http", "https"):
                request.scheme = proto
        return request

    def _host(self, value: str | None, version: tuple[int, int]) -> str:
        if value is None:
            if version >= (1, 1):
                raise BadRequest("the Host field is missing")
            return ""
        host = self._hosts.get(value)
        if host is None:
            if not _HOST.fullmatch(value):
                raise BadRequest("the Host field is not a host with an optional port")
            if len(self._hosts) >= MAX_KNOWN_HOSTS:
                self._hosts.clear()
            host = self._hosts[value] = value.lower()
        return host

    def _absolute(self, head: Head, target: str) -> str:
        """The path of an absolute-form target, whose authority replaces Host (RFC 9112, section 3.2.2)."""
        field = self._host(head.headers.get("Host"), head.version)
        if target == "*" and head.method == "OPTIONS":
            head.host = field
            return "*"
        match = _ABSOLUTE.fullmatch(target)
        if match is None:
            raise BadRequest("the request target is neither a path nor an http URL")
        authority = match[1]
        head.host = self._host(authority, head.version)
        head.host_line = header_line("Host", authority)
        rest = match[2]
        return rest if rest[:1] == "/" else "/" + rest

    def failure(self, request: Request, error: Exception) -> Response:
        """What becomes of a request whose chain has raised."""
        if isinstance(error, BodyTooLarge):
            return problem(413, "Content too large", f"The body is longer than {self.table.max_body} bytes.")
        if isinstance(error, BodyTimeout):
            return problem(408, "Request timeout", "The body did not arrive in time.")
        if isinstance(error, BodyBroken):
            return problem(400, "Bad request", "The body ended early or is framed wrongly.")
        logger.error("%s %s: a plugin or the upstream's handler failed", request.method, request.path, exc_info=error)
        return problem(500, "Internal error", "The gateway failed to handle the request.")

    def began(self) -> None:
        """A request is being handled that the end must wait for: `ended` or `left` follows, whatever happens."""
        self.in_flight += 1

    def ended(self, request: Request, status: int, size: int, outcome: str) -> None:
        """A request was answered, or will never be.

        Args:
            status: `CLIENT_GONE` where the client had gone.
            size: bytes of the answer.
        """
        self.left()
        if self.observer is not None:
            self.observer.record(request, status, size, outcome)

    def left(self) -> None:
        """One less is being handled."""
        self.in_flight -= 1
        if not self.in_flight:
            self._quiet.set()

    def gone(self, request: Request) -> None:
        """The client has gone while its request waited for something."""
        if request.asked is not None:
            request.asked.abandon()
        self.ended(request, CLIENT_GONE, 0, FAILED)

    async def answer(self, connection: Connection, request: Request, respond: Handler, keep_alive: bool) -> bool:
        """Respond and send, in a task, and tell `ended`; whether the connection may serve another request."""
        response = None
        size = 0
        outcome = FAILED
        try:
            try:
                response = await respond(request)
                if not isinstance(response, Response):
                    raise TypeError(f"a plugin has answered with {response!r}")
            except Exception as error:
                response = self.failure(request, error)
            try:
                sent = await self._send(connection, request, response, keep_alive)
            except Unsendable as error:
                response = self.failure(request, error)
                sent = await self._send(connection, request, response, keep_alive)
            outcome = response.outcome
            size = sent.size
            return sent.keep_alive
        except ConnectionError:
            return False
        except Exception as error:
            # The head is out: all that can be said now is said by closing early.
            outcome = FAILED
            logger.warning("%s %s: the answer broke off: %s", request.method, request.path, error)
            return False
        finally:
            self.ended(request, response.status if response is not None else CLIENT_GONE, size, outcome)

    async def _send(self, connection: Connection, request: Request, response: Response, keep_alive: bool) -> Sent:
        keep_alive = keep_alive and not self.draining
        request.connection = None
        return await send(connection, request, response, keep_alive=keep_alive, send_timeout=self.table.send_timeout)

    async def refuse(self, connection: Connection, error: BadRequest) -> bool:
        """400 for a request that was parsed but is ambiguous; the connection is closed."""
        await connection.send_problem(problem(400, "Bad request", f"{str(error).capitalize()}."))
        return False

    async def _long_way(self, base: web.BaseRequest) -> Any:
        connection, message = base._protocol, base._message
        assert isinstance(connection, Connection)
        try:
            request = self.request(connection, self.head(message))
            self._complete(request, connection, message, base._payload)
        except BadRequest as error:
            return Done(await self.refuse(connection, error))
        except BodyTooLarge:
            await connection.send_problem(
                problem(413, "Content too large", f"The body is longer than {self.table.max_body} bytes.")
            )
            return Done(False)
        self.began()
        keep_alive = await self.answer(connection, request, request.route.chain, not message.should_close)
        if isinstance(request.body, ClientBody) and request.body.stopped:
            connection.force_close()  # nothing more will come that would be worth lingering for
        return Done(keep_alive)

    def _complete(self, request: Request, connection: Connection, message: Any, payload: StreamReader) -> None:
        """What the short way never has: a body, or a change of protocol."""
        if message.method == "CONNECT":
            raise BadRequest("CONNECT is not served here")
        if payload is not EMPTY_PAYLOAD:
            length = message.headers.get("Content-Length")
            if length is not None and int(length) > self.table.max_body:
                raise BodyTooLarge
            expects = message.headers.get("Expect", "").lower() == "100-continue" and message.version >= (1, 1)
            request.body = ClientBody(
                payload,
                int(length) if length is not None else None,
                connection if expects else None,
                self.table.max_body,
                self.table.body_timeout,
            )
        elif message.upgrade and message.version >= (1, 1):
            protocol = message.headers.get("Upgrade", "").strip().lower()
            # h2c would tunnel requests past every plugin.
            request.upgrade = protocol if protocol and H2C not in protocol else None

    # -- the end -----------------------------------------------------------------------------------

    async def drain(self, timeout: float) -> bool:
        """Let requests in flight end, then close the connections; whether all ended within `timeout` seconds.

        For a moment kept connections are still served, with `Connection: close`: a client may have sent the next
        request while we decided to end, and cannot know whether it was done.
        """
        self.draining = True
        loop = asyncio.get_running_loop()
        begun = loop.time()
        while self._connections and loop.time() - begun < min(DRAIN_GRACE_SECONDS, timeout):  # noqa: ASYNC110
            await asyncio.sleep(DRAIN_LOOK_SECONDS)
        for connection in self.connections:
            if isinstance(connection, Connection) and connection.idle:
                connection.force_close()
        self._quiet.clear()
        if self.in_flight:
            try:
                await asyncio.wait_for(self._quiet.wait(), begun + timeout - loop.time())
            except TimeoutError:
                logger.warning("drain: %d requests did not end within %g s", self.in_flight, timeout)
        finished = self.in_flight == 0
        await asyncio.sleep(0)
        self.pre_shutdown()
        await self.shutdown(0.1)
        return finished
