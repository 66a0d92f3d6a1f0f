"""A request, as plugins see it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol

from multidict import CIMultiDictProxy

if TYPE_CHECKING:
    from gateway.connection import Connection
    from gateway.plugin import Plugin
    from gateway.routes import Route
    from gateway.store import Answer, Redis
    from gateway.upstream.asked import Asked

# Behind the name of a field in `Request.changes`: a line beside the client's, not instead of them.
ADDED: Final = b" "

# Begins an identity that is made of several users' names.
SEVERAL: Final = "&"


def users_of(identity: str) -> list[str]:
    """The users that an identity is made of; mostly one."""
    if not identity.startswith(SEVERAL):
        return [identity]
    users, rest = [], identity[1:]
    while rest:
        size, colon, rest = rest.partition(":")
        if not colon or not size.isdecimal() or len(size) > 6 or int(size) > len(rest):
            return [identity]  # a plugin's own, that only looks like one of ours
        users.append(rest[: int(size)])
        rest = rest[int(size) :]
    return users or [identity]


class BodyTooLarge(Exception):
    """The request's body is longer than allowed: the answer is 413."""


class BodyTimeout(Exception):
    """The client stopped sending its body: the answer is 408."""


class BodyBroken(Exception):
    """The client's body ended early or was framed wrongly: the answer is 400."""


class RequestBody(Protocol):
    """The request's body, piece by piece, once; or again and again after `peek` has returned it."""

    length: int | None
    """Bytes, where the client said so; None for a chunked body."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    async def read(self, limit: int) -> bytes:
        """The whole body. Raises BodyTooLarge, BodyTimeout or BodyBroken."""

    async def peek(self, limit: int) -> bytes | None:
        """The whole body if it has at most `limit` bytes, else None; the upstream still gets all of it.

        Raises BodyTooLarge (of what the server allows at all), BodyTimeout or BodyBroken.
        """


class Head:
    """What the bytes of a request's head say, and where they lead. Requests with the same bytes share one.

    Everything here is a function of those bytes alone, never of who sent them or when.
    """

    __slots__ = (
        "headers",
        "host",
        "host_line",
        "method",
        "notes",
        "params",
        "path",
        "query",
        "raw_headers",
        "route",
        "should_close",
        "target",
        "version",
    )

    method: str
    version: tuple[int, int]
    headers: CIMultiDictProxy[str]
    raw_headers: tuple[tuple[bytes, bytes], ...]
    should_close: bool
    target: str
    path: str
    query: str
    host: str
    host_line: bytes | None
    """The `Host` line that replaces the client's, where the target names another authority."""
    route: Route
    params: Mapping[str, str]
    notes: dict[Any, Any]


class Request:
    """What came in, and what the chain has found out about it so far.

    `path`, `query` and the header values are as the client sent them, byte for byte (undecodable
    bytes as surrogates); nothing is decoded twice.
    """

    __slots__ = (
        "_redis",
        "answers",
        "asked",
        "body",
        "changes",
        "client",
        "connection",
        "depth",
        "early",
        "guess",
        "headers",
        "host",
        "id",
        "identity",
        "identity_pending",
        "last_tick",
        "method",
        "notes",
        "params",
        "path",
        "query",
        "raw_headers",
        "route",
        "scheme",
        "started",
        "state",
        "target",
        "token",
        "trips",
        "upgrade",
        "upstream_seconds",
        "user",
        "version",
        "waiting",
    )

    method: str
    path: str
    """The path, starting with `/`, without the query."""
    query: str
    """What stands behind the first `?`, without it; empty if nothing does."""
    target: str
    """Path and query as they are sent to the upstream: also the `?` of an empty query."""
    headers: CIMultiDictProxy[str]
    raw_headers: tuple[tuple[bytes, bytes], ...]
    version: tuple[int, int]
    scheme: str
    host: str
    """`Host` (or the absolute target's authority), lower-cased, with its port if it had one."""
    client: str
    """The client's IP address, found by the trusted-proxy rule."""
    connection: Connection | None
    """The client's, for interim answers, until the answer begins. A copy of a request must not have it."""
    body: RequestBody | None
    upgrade: str | None
    """The protocol the client asks to change to, lower-cased."""
    route: Route
    params: Mapping[str, str]
    """What the route's `{name}` segments matched."""
    notes: dict[Any, Any]
    """What plugins have worked out from the request's head alone, each under itself as the key: requests whose heads
    are the same bytes share it. What also depends on the client, its scheme or its identity must say for which it is;
    nothing here depends on time or is large: it is kept for as long as the head is remembered."""
    id: str
    started: float
    """`time.monotonic()` when the request was complete."""
    user: str | None
    """The user's id, set by the plugin that knows (`session`)."""
    token: str | None
    """The bearer token as it was sent, set by the plugin that looked at it."""
    identity: str | None
    """Whom this request speaks for; answers are kept apart by it. None: nobody in particular."""
    identity_pending: bool
    """An `ask` of an earlier plugin will tell the identity, but only once Redis has replied."""
    early: bool
    """Whether plugins are being asked all at once. Otherwise it is one's own turn, and all before it have decided."""
    guess: str | None
    """Whom it will turn out to speak for, if nothing has changed since these credentials were last seen. Good enough
    to ask Redis with, in the same trip; never to decide by."""
    trips: int
    """Redis round trips this request has waited for."""
    upstream_seconds: float | None
    answers: dict[Plugin, Any]
    changes: dict[bytes, bytes | None]
    """What the upstream gets instead of the client's fields: whole lines, None for nothing, by lower-cased name."""
    state: dict[str, Any]
    depth: int
    """How far down the chain the request has come (`gateway.chain`)."""
    waiting: Answer | None
    """What the chain waits for (`gateway.chain`)."""
    asked: Asked | None
    """It was sent to the upstream by `Upstream.begin`, and nobody has taken over yet."""
    last_tick: int
    _redis: Redis

    def __init__(
        self,
        head: Head,
        redis: Redis,
        number: str,
        started: float,
        client: str,
        connection: Connection | None = None,
    ) -> None:
        self.id = number
        self.started = started
        self.client = client
        self.connection = connection
        self.method = head.method
        self.version = head.version
        self.headers = head.headers
        self.raw_headers = head.raw_headers
        self.target = head.target
        self.path = head.path
        self.query = head.query
        self.host = head.host
        self.route = head.route
        self.params = head.params
        self.notes = head.notes
        self.scheme = "http"
        self.body = self.upgrade = None
        self.user = self.token = self.identity = self.guess = None
        self.identity_pending = False
        self.early = True
        self.upstream_seconds = None
        self.trips = self.depth = 0
        self.last_tick = -1
        self.waiting = None
        self.asked = None
        self.answers = {}
        self.changes = {} if head.host_line is None else {b"host": head.host_line}
        self.state = {}
        self._redis = redis

    def __repr__(self) -> str:
        return f"<Request {self.method} {self.path} from {self.client}>"

    def speaks_for(self, user: str) -> None:
        """A plugin has found out whose request this is: it becomes the request's user and identity.

        Where two plugins name different users (a token of one, a session of another), the later is the user, and the
        identity is both: what was made for such a request is for neither of them alone.
        """
        self.user = user
        if (self.identity is None and user[:1] != SEVERAL) or self.identity == user:
            self.identity = user
            return
        named: set[str] = self.state.setdefault("identities", set() if self.identity is None else {self.identity})
        named.add(user)
        self.identity = SEVERAL + "".join(f"{len(one)}:{one}" for one in sorted(named))

    @property
    def redis(self) -> Redis:
        """Redis, for a question that could not be asked in `ask`: it costs one more (shared) round trip."""
        # The store's tick tells whether this question shares a write with an earlier one.
        if self._redis.tick != self.last_tick:
            self.last_tick = self._redis.tick
            self.trips += 1
        return self._redis

    def set_header(self, name: str, value: str) -> None:
        """Send this field to the upstream, instead of any that the client sent under the name.

        A client's spelling with `_` for `-` is dropped too: many upstreams read the two as one.

        Raises:
            ValueError: a control character in name or value.
        """
        from gateway.response import header_line

        self._change(name, header_line(name, value))

    def add_header(self, name: str, value: str) -> None:
        """Send this field to the upstream beside any that are sent under the name.

        Raises:
            ValueError: a control character in name or value.
        """
        from gateway.response import header_line

        # No field is called so: those that the client sent stay.
        key = name.lower().replace("_", "-").encode() + ADDED
        self.changes[key] = (self.changes.get(key) or b"") + header_line(name, value)

    def remove_header(self, name: str) -> None:
        """Send no field of this name to the upstream (nor the client's spelling with `_` for `-`)."""
        self._change(name, None)

    def _change(self, name: str, line: bytes | None) -> None:
        key = name.lower().replace("_", "-").encode()
        self.changes[key] = line
        self.changes.pop(key + ADDED, None)

    def cookie(self, name: str) -> str | None:
        """The value of the first cookie of this name (RFC 6265, section 5.4), or None."""
        for line in self.headers.getall("Cookie", ()):
            for pair in line.split(";"):
                key, equals, value = pair.strip(" \t").partition("=")
                if equals and key == name:
                    return value
        return None

    def bearer(self) -> str | None:
        """The bearer token (RFC 6750, section 2.1), or None."""
        value = self.headers.get("Authorization")
        if value is None or value[:7].lower() != "bearer ":
            return None
        return value[7:].strip() or None
