"""How sessions lie in Redis: the names of keys, what a hash holds, how a session begins and ends.

    {prefix}:session:{id}          HASH    userId, createdAt, expiresAt and what the application adds
    {prefix}:user:{id}:sessions    ZSET    the stored ids of a user's sessions by the time they end

The two may lie in different slots of a cluster, so no script touches both. The index is written first and deleted
last: it may name a session that is gone, but no live session is missing from it.
"""

from __future__ import annotations

import math
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Final, cast

from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from gateway.plugin import Script
from plugins._keys import halves

DEFAULT_TTL: Final = 24 * 3600.0
DEFAULT_KEY: Final = "{prefix}:session:{id}"
MAX_USER: Final = 256
# One user's logins must not fill Redis; a person's devices are far fewer.
MAX_SESSIONS_OF_USER: Final = 1000
ID_BYTES: Final = 32

READ: Final = Script.beside(__file__, "read.lua")
TOUCH: Final = Script.beside(__file__, "touch.lua")
CREATE: Final = Script.beside(__file__, "create.lua")
INDEX: Final = Script.beside(__file__, "index.lua")

# As seconds this is the year 5138, as milliseconds 1973: sessions end between the two.
_MILLISECONDS_FROM: Final = 1e11
_NUMBER: Final = re.compile(r"[0-9]{1,16}(\.[0-9]{1,9})?")

Eval = tuple[Any, ...]
"""What redis-py's `eval` takes: the script, the number of keys, keys and arguments."""


class Layout:
    """Where sessions lie and what their fields are called.

    Args:
        prefix: the `prefix` of `[redis]`.
        key: the name of a session's key, with `{prefix}` and `{id}`.
        hash_ids: store ids as their SHA-256, so that who reads Redis cannot use them.
        user_field: the field with the user's id.
        expires_field: the field with the time the session ends; empty: it ends with its key.
    """

    __slots__ = ("_head", "_tail", "expires_field", "hash_ids", "prefix", "user_field")

    def __init__(
        self,
        prefix: str = "gateway",
        *,
        key: str = DEFAULT_KEY,
        hash_ids: bool = True,
        user_field: str = "userId",
        expires_field: str = "expiresAt",
    ) -> None:
        self.prefix = prefix
        self._head, self._tail = halves(key, prefix)
        self.hash_ids = hash_ids
        self.user_field = user_field
        self.expires_field = expires_field

    def stored(self, session_id: str) -> str:
        """The id as it stands in Redis."""
        return sha256(session_id.encode()).hexdigest() if self.hash_ids else session_id

    def key(self, stored: str) -> str:
        """The key of a session's hash."""
        return f"{self._head}{stored}{self._tail}"

    def index(self, user: str) -> str:
        """The key of the index of a user's sessions."""
        return f"{self.prefix}:user:{user}:sessions"

    def index_command(self, user: str, stored: str, expires: float, now: float) -> Eval:
        """Notes a session in its user's index; the reply lists the stored ids that had to make room."""
        return (INDEX.source, 1, self.index(user), *index_args(stored, expires, now))


def index_args(stored: str, expires: float, now: float) -> tuple[str | int, ...]:
    """What `index.lua` takes."""
    return stored, f"{expires:.3f}", f"{now:.3f}", MAX_SESSIONS_OF_USER


def parse_time(text: str) -> float:
    """Seconds since 1970, milliseconds since 1970, or ISO 8601 (UTC unless it says otherwise), as seconds.

    Raises:
        ValueError: it is none of them.
    """
    if _NUMBER.fullmatch(text):
        number = float(text)
        return number / 1000 if number >= _MILLISECONDS_FROM else number
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    try:
        return moment.timestamp()
    except OverflowError as error:
        raise ValueError(f"{text!r} is out of range") from error


def format_time(seconds: float, like: str) -> str:
    """A time in the notation of another one, which `parse_time` has understood."""
    if _NUMBER.fullmatch(like):
        return str(math.ceil(seconds * 1000 if float(like) >= _MILLISECONDS_FROM else seconds))
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def field_of(fields: Mapping[bytes, bytes], name: str) -> str:
    """A field's text.

    Raises:
        ValueError: there is none, or it is not UTF-8.
    """
    value = fields.get(name.encode())
    if value is None:
        raise ValueError(f"no field {name!r}")
    return value.decode()


# -- beginning a session -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Beginning:
    """A new session, not written yet."""

    id: str
    """What the client is to send; it stands nowhere in Redis if ids are hashed."""
    note: Eval
    """First: into the index. The reply lists stored ids whose sessions are to be ended."""
    write: Eval
    """Then the session itself."""


def begin(
    layout: Layout, user: str, *, ttl: float = DEFAULT_TTL, fields: Mapping[str, str] | None = None, now: float
) -> Beginning:
    """A new session of a user.

    Args:
        layout: where it is to lie.
        user: the user's id.
        ttl: how long it lasts without use, in seconds.
        fields: what the application keeps in it, for instance what `pass_fields` hands on.
        now: seconds since 1970.

    Raises:
        ValueError: the user's id is empty or too long.
    """
    if not 0 < len(user) <= MAX_USER:
        raise ValueError(f"a user's id has 1 to {MAX_USER} characters, this one has {len(user)}")
    session_id = secrets.token_urlsafe(ID_BYTES)
    while session_id[0] == "-":
        # A command line would take it for an option.
        session_id = secrets.token_urlsafe(ID_BYTES)
    stored = layout.stored(session_id)
    expires = math.ceil(now + ttl)
    content = {
        **(fields or {}),
        layout.user_field: user,
        "createdAt": str(int(now)),
    }
    if layout.expires_field:
        content[layout.expires_field] = str(expires)
    pairs = [part for pair in content.items() for part in pair]
    return Beginning(
        session_id,
        layout.index_command(user, stored, expires, now),
        (CREATE.source, 1, layout.key(stored), math.ceil(ttl * 1000), *pairs),
    )


def create_session(
    redis: Redis,
    user: str,
    *,
    layout: Layout | None = None,
    ttl: float = DEFAULT_TTL,
    fields: Mapping[str, str] | None = None,
) -> str:
    """Begin a session; its id, for the client. See `begin` for the arguments."""
    layout = layout or Layout()
    beginning = begin(layout, user, ttl=ttl, fields=fields, now=time.time())
    for stored in _ids(redis.eval(*beginning.note)):
        redis.unlink(layout.key(stored))
    redis.eval(*beginning.write)
    return beginning.id


async def create_session_async(
    redis: AsyncRedis,
    user: str,
    *,
    layout: Layout | None = None,
    ttl: float = DEFAULT_TTL,
    fields: Mapping[str, str] | None = None,
) -> str:
    """`create_session` for asyncio."""
    layout = layout or Layout()
    beginning = begin(layout, user, ttl=ttl, fields=fields, now=time.time())
    for stored in _ids(await cast(Any, redis).eval(*beginning.note)):
        await redis.unlink(layout.key(stored))
    await cast(Any, redis).eval(*beginning.write)
    return beginning.id


def _ids(reply: Any) -> list[str]:
    return [stored if isinstance(stored, str) else stored.decode() for stored in reply]
