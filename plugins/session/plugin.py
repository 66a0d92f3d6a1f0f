"""Lets requests in that carry a live session, and tells the upstream whose it is."""

from __future__ import annotations

import asyncio
import logging
import math
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import Field, StringConstraints, model_validator

from gateway.plugin import (
    Answer,
    Handler,
    Known,
    OnRedisFailure,
    Plugin,
    PluginConfig,
    Read,
    Redis,
    RedisDown,
    RedisError,
    Request,
    Response,
    Seconds,
    Seldom,
    header_line,
    problem,
)
from plugins._keys import KeyTemplate
from plugins.session.sessions import (
    DEFAULT_KEY,
    DEFAULT_TTL,
    INDEX,
    MAX_USER,
    READ,
    TOUCH,
    Layout,
    field_of,
    format_time,
    index_args,
    parse_time,
)

if TYPE_CHECKING:
    from gateway.plugin import Worker

logger = logging.getLogger("gateway.session")

# RFC 6265, section 4.1.1: what a cookie's value may consist of. Bounded, as the gateway hashes it unasked.
_ID: Final = re.compile(r"[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]{1,512}")
# The message's framing and the way back are the gateway's business.
_NOT_OURS: Final = frozenset(
    {"connection", "content-length", "expect", "host", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"}
)
MAX_TTL: Final = 10 * 365 * 86400.0
MAX_REMEMBERED_TOUCHES: Final = 10_000
MAX_TOUCHES_IN_FLIGHT: Final = 1000
MAX_REMEMBERED_USERS: Final = 10_000
MAX_SAME_BYTES: Final = 1024

NOT_NOTED: Final = object()

# The session was sent, but cannot be one: Redis is not asked.
_UNUSABLE: Final = Known(None)

Token = Annotated[str, StringConstraints(pattern=r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$", max_length=100)]
Changes = Mapping[bytes, bytes | None]


@dataclass(frozen=True, slots=True)
class Found:
    """What is kept of a session's hash."""

    user: str
    expires: float
    """Seconds since 1970; infinite where the hash does not tell, or nothing does."""
    expires_text: str
    """The same as it stands in Redis; empty where the hash does not tell."""
    changes: Changes
    """The header lines that tell the upstream, as `Request.changes` takes them."""


class Same:
    """Reads replies that mostly are what they were the last time.

    Args:
        parse: reads one that is not.
    """

    __slots__ = ("_found", "_parse", "_reply")

    def __init__(self, parse: Callable[[dict[bytes, bytes]], Found | None]) -> None:
        self._parse = parse
        self._reply: dict[bytes, bytes] | None = None
        self._found: Found | None = None

    def __call__(self, reply: dict[bytes, bytes]) -> Found | None:
        if reply == self._reply:
            return self._found
        found = self._parse(reply)
        if sum([len(name) + len(value) for name, value in reply.items()]) <= MAX_SAME_BYTES:
            self._reply, self._found = reply, found
        return found


class Session(Plugin):
    """A session must be there (or may be, with `required = false`); the upstream learns its user.

    The session is read through the mirror, so a session in use costs no trip, and one that is revoked is refused on
    every node as soon as Redis has said so. `identity_pending` stays true where Redis could not tell whose request
    this is and the request passes all the same: it is not known to be nobody's.

    With `on_redis_failure = "local"` the sessions that this worker's mirror held when it lost Redis go on for
    `local_seconds`. Nobody hears of a logout meanwhile. Who has another session is refused (503).
    """

    class Config(PluginConfig):
        sources: tuple[Literal["cookie", "bearer", "header"], ...] = Field(
            ("cookie", "bearer"), min_length=1, description="Where the session's id may stand; the first that has one."
        )
        cookie: Token = Field("session", description="Name of the cookie with the id.")
        header: Token = Field("X-Session-Id", description="Name of the header field with the id.")
        required: bool = Field(True, description="false: who has no session passes as nobody in particular.")
        realm: str = Field(
            "gateway", pattern=r"^[ !#-\[\]-~]+$", description="What the WWW-Authenticate of a refusal says."
        )
        key: KeyTemplate = Field(DEFAULT_KEY, description="Name of a session's key.")
        hash_ids: bool = Field(True, description="Whether the key has the SHA-256 of the id instead of the id.")
        user_field: str = Field("userId", min_length=1, description="The hash's field with the user's id.")
        expires_field: str = Field(
            "expiresAt",
            description="The field with the session's end: seconds or milliseconds since 1970, or ISO 8601;"
            " empty: there is none, a session lasts as long as its key.",
        )
        ttl: Seconds = Field(
            DEFAULT_TTL, ge=1, le=MAX_TTL, description="A session in use lasts this much longer each time."
        )
        touch_interval: Seconds = Field(60.0, description="It is moved on at most this often.")
        local_seconds: Seconds = Field(
            30.0,
            gt=0,
            description='How long a known session is believed without a word from Redis: on_redis_failure = "local".',
        )
        sliding: bool = Field(True, description="false: a session ends when its creator said, used or not.")
        user_header: Token = Field("X-User-Id", description="Tells the upstream the user's id; never from outside.")
        pass_fields: dict[str, Token] = Field(
            default_factory=dict,
            description='More fields for the upstream: {email = "X-User-Email"}; never from outside either.',
        )

        @model_validator(mode="after")
        def _sensible(self) -> Session.Config:
            if self.touch_interval >= self.ttl:
                raise ValueError("expected a touch_interval shorter than ttl: otherwise sessions in use would end")
            if self.sliding and not self.expires_field:
                raise ValueError(
                    'expected sliding = false beside expires_field = "": who gives the keys their TTL moves it on'
                )
            names = [_lower(name).decode() for name in (self.user_header, *self.pass_fields.values())]
            if len(set(names)) < len(names):
                raise ValueError("expected different header fields in user_header and pass_fields")
            if taken := sorted(_NOT_OURS.intersection(names)):
                raise ValueError(f"{taken[0]} is not a field that user_header or pass_fields can set")
            return self

    on_redis_failure: OnRedisFailure = "refuse"
    config: Config

    def __init__(self, config: Config, name: str) -> None:
        super().__init__(config, name)
        self.clock: Callable[[], float] = time.time
        self._headers = {config.user_field: config.user_header, **config.pass_fields}
        self._nothing: Changes = {_lower(header): None for header in self._headers.values()}
        # A session that has less than this left has not been moved on for a touch_interval.
        self._due = config.ttl - config.touch_interval if config.sliding else float("-inf")
        self._layout = self.layout("gateway")
        self._redis: Redis | None = None
        self._mirrored = False
        self._users: OrderedDict[bytes, str] = OrderedDict()
        self._touched: dict[str, float] = {}
        self._touching: set[asyncio.Task[None]] = set()
        self._complained: set[str] = set()
        self._complaint = Seldom()

    def layout(self, prefix: str) -> Layout:
        """Where this plugin's sessions lie."""
        config = self.config
        return Layout(
            prefix,
            key=config.key,
            hash_ids=config.hash_ids,
            user_field=config.user_field,
            expires_field=config.expires_field,
        )

    async def start(self, worker: Worker) -> None:
        self._redis = worker.redis
        self._mirrored = worker.redis.mirror.max_bytes > 0
        self._layout = self.layout(worker.redis.prefix)
        worker.redis.register(TOUCH, INDEX)
        if self.on_redis_failure == "local" and not self._mirrored:
            logger.warning(
                '%s: on_redis_failure = "local" knows no session without a mirror; set redis.mirror.max_bytes',
                self.name,
            )

    async def stop(self) -> None:
        for task in self._touching:
            task.cancel()
        await asyncio.gather(*self._touching, return_exceptions=True)

    def ask(self, request: Request, redis: Redis) -> Answer | None:
        # Here and not later: `ask` runs also for a request that then passes because Redis is down.
        request.changes.update(self._nothing)
        read = request.notes.get(self, NOT_NOTED)
        if read is NOT_NOTED:
            read = request.notes[self] = self._read(request)
        if read is None:
            return None
        answer = redis.look(read) if type(read) is Read else _UNUSABLE
        if not answer.ready or answer.error is not None:
            request.identity_pending = True
            request.guess = self._users.get(read.key)
        elif answer.value is not None and answer.value.expires > self.clock():
            request.speaks_for(answer.value.user)
        return answer

    def check(self, request: Request, reply: Found | None) -> Response | None:
        request.identity_pending = False
        now = self.clock()
        if reply is None or reply.expires <= now:
            if request.guess is not None and type(read := request.notes.get(self)) is Read:
                # Or each request with what is over would be counted for its former user.
                self._users.pop(read.key, None)
            if self.config.required:
                return self._refuse(sent=self in request.answers)
            return None
        self._accept(request, reply)
        if reply.expires - now < self._due:
            self._touch(request, reply, now)
        return None

    async def without_redis(self, request: Request, call_next: Handler) -> Response:
        read = request.notes.get(self)
        found: Found | None = None
        if type(read) is Read and self._redis is not None:
            found = self._redis.last_known(read.key, self.config.local_seconds)
        if found is None or found.expires <= self.clock():
            raise RedisDown("this session is not known here")
        request.identity_pending = False
        self._accept(request, found)
        return await call_next(request)

    # -- inside ------------------------------------------------------------------------------------

    def _accept(self, request: Request, found: Found) -> None:
        user = found.user
        if request.guess != user and not isinstance(request.answers[self], Known):
            self._remember(request.notes[self].key, user)
        request.speaks_for(user)
        request.changes.update(found.changes)

    def _read(self, request: Request) -> Read | Known | None:
        """How to read the request's session; None if it has none."""
        session_id = self._find(request)
        if session_id is None:
            return None
        if not _ID.fullmatch(session_id):
            return _UNUSABLE
        layout = self._layout
        key = layout.key(layout.stored(session_id))
        # Redis never returns a key past its TTL, but tells only later that it has gone: what is kept needs its end.
        if self._mirrored and not self.config.expires_field:
            return Read(READ, key, parse=self._lasting)
        return Read("HGETALL", key, parse=self._found if self._mirrored else Same(self._found))

    def _remember(self, key: bytes, user: str) -> None:
        """For the next one who comes with this session, so that others need not wait for Redis to tell them."""
        if len(self._users) >= MAX_REMEMBERED_USERS:
            self._users.popitem(last=False)
        self._users[key] = user

    def _find(self, request: Request) -> str | None:
        for source in self.config.sources:
            if source == "cookie":
                value = request.cookie(self.config.cookie)
            elif source == "bearer":
                value = request.bearer()
            else:
                value = request.headers.get(self.config.header)
            if value:
                return value
        return None

    def _refuse(self, *, sent: bool) -> Response:
        """401 (RFC 6750, section 3.1): who sent nothing is not told of an error."""
        if sent:
            response = problem(401, "Session not valid", "The session has ended or never was. Log in again.")
        else:
            response = problem(401, "Session required", "Log in, and send the session with each request.")
        challenge = f'Bearer realm="{self.config.realm}"'
        response.set("WWW-Authenticate", challenge + ', error="invalid_token"' if sent else challenge)
        return response

    def _found(self, reply: Any) -> Found | None:
        """The reply to HGETALL.

        Raises:
            ValueError: it is not a session.
        """
        return self._parse(reply) if reply else None

    def _lasting(self, reply: Any) -> Found | None:
        """The reply to `read.lua`.

        Raises:
            ValueError: it is not a session.
        """
        left, flat = reply
        if not flat:
            return None
        found = self._parse(dict(zip(flat[::2], flat[1::2], strict=True)))
        return found if left < 0 else replace(found, expires=self.clock() + left / 1000)

    def _parse(self, fields: Mapping[bytes, bytes]) -> Found:
        user = field_of(fields, self.config.user_field)
        if not 0 < len(user) <= MAX_USER:
            raise ValueError(f"a user's id of {len(user)} characters")
        expires_text, expires = "", math.inf
        if self.config.expires_field:
            expires_text = field_of(fields, self.config.expires_field)
            expires = parse_time(expires_text)
        changes: dict[bytes, bytes | None] = {}
        for field, header in self._headers.items():
            value = fields.get(field.encode())
            if value is not None and (line := self._line(header, value)):
                changes[_lower(header)] = line
        return Found(user, expires, expires_text, changes)

    def _line(self, header: str, value: bytes) -> bytes | None:
        """A header line for the upstream; None where the value would not arrive as it is."""
        try:
            text = value.decode()
            if text != text.strip():
                raise ValueError("white space around it would be lost on the way")
            return header_line(header, text)
        except ValueError:
            if header not in self._complained:
                self._complained.add(header)
                logger.warning(
                    "%s: a session has a value that no header can carry; the upstream does not get %s",
                    self.name,
                    header,
                )
            return None

    def _touch(self, request: Request, found: Found, now: float) -> None:
        """Move the session's end on, behind the request's back."""
        session_id = self._find(request)
        if session_id is None or self._redis is None or len(self._touching) >= MAX_TOUCHES_IN_FLIGHT:
            return
        stored = self._layout.stored(session_id)
        # What was read tells when it was moved last; this only keeps a failing Redis from being asked each time.
        last = self._touched.get(stored)
        if last is not None and now - last < self.config.touch_interval:
            return
        if len(self._touched) >= MAX_REMEMBERED_TOUCHES:
            del self._touched[next(iter(self._touched))]
        self._touched[stored] = now
        task = asyncio.get_running_loop().create_task(self._move(self._redis, stored, found, now))
        self._touching.add(task)
        task.add_done_callback(self._touching.discard)

    async def _move(self, redis: Redis, stored: str, found: Found, now: float) -> None:
        layout, config = self._layout, self.config
        expires = now + config.ttl
        text = format_time(expires, found.expires_text)
        arguments = (config.expires_field, found.expires_text, text, round(config.ttl * 1000))
        try:
            if await redis.run(TOUCH, [layout.key(stored)], arguments):
                ended = await redis.run(INDEX, [layout.index(found.user)], index_args(stored, expires, now))
                for other in ended:
                    redis.tell("UNLINK", layout.key(other.decode()))
        except RedisError as error:
            if self._complaint.due():
                logger.warning("%s: a session's end could not be moved on: %s", self.name, error)


def _lower(header: str) -> bytes:
    """A header field's name as `Request.changes` has it: an upstream may read `_` as `-`."""
    return header.lower().replace("_", "-").encode()
