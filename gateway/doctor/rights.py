"""What the user may, of what our commands need.

Redis is asked without running anything: by ACL DRYRUN; or else by queueing each command in a transaction that is never
executed, as Redis checks rights before it queues (what it refuses then stands in ACL LOG). For who may do neither, the
commands of the links themselves are sent, with arguments by which they do nothing.

(`redis.acl_check_cmd` in a script needs no right but EVAL. It is not used: with too few arguments it crashes servers,
Valkey 9.1 among them, see redis/redis#14843.)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import redis
from redis.exceptions import NoPermissionError

from gateway.doctor.needs import CORE, Words, rule

MAX_WORDS: Final = 8
RUN: Final = "to run the"
"""Stands in what Redis says where the command is refused, and not a key."""
NOT_QUEUED: Final = frozenset({"exec", "discard", "multi", "quit", "reset", "watch"})
"""Never asked about: in a transaction they are run at once, and what follows them would be too."""
DEFAULT_USER: Final = "default"


class MayNotLook(Exception):
    """Rights cannot be told; the message says which right is missing for that."""


@dataclass(frozen=True, slots=True)
class Lacking:
    """What the user may not.

    Args:
        commands: as a rule for ACL SETUSER without its sign: `client|tracking`.
        keys: patterns of keys that it may not use.
    """

    commands: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()


def user_of(client: redis.Redis) -> str:
    """Who is connected."""
    return str(client.connection_pool.connection_kwargs.get("username") or DEFAULT_USER)


def lacking(
    client: redis.Redis, commands: Iterable[Words], keys: Mapping[str, str], user: str | None = None
) -> Lacking:
    """Which of these commands and keys the user may not use. Nothing is run.

    Args:
        keys: made up names of keys that must be readable, with the pattern each stands for; the first one must be
            writable too.
        user: another than the one that is connected.

    Raises:
        LookupError: there is no such user.
        MayNotLook: neither way of asking is open to the one that is connected.
        redis.exceptions.RedisError: Redis did not answer.
    """
    probe, *others = keys
    forms = {words: (*words, *CORE.get(words, ())) for words in commands if words[0] not in NOT_QUEUED}
    try:
        refused = _refused(client, forms, probe, user)
        asked: dict[Words, Words] = {(key,): ("mget", key) for key in others}
        closed = {key for (key, *_), why in _refused(client, asked, probe, user).items() if RUN not in why}
    except MayNotLook:
        if user is not None:
            raise
        refused, closed = _tried(client, {words: form for words, form in forms.items() if words in CORE}, probe), set()
        if not refused:
            raise
    if any(RUN not in why for why in refused.values()):
        closed.add(probe)
    denied = sorted(rule(words) for words, why in refused.items() if RUN in why)
    return Lacking(tuple(denied), tuple(sorted(keys[key] for key in closed)))


def _tried(client: redis.Redis, forms: Mapping[Words, Words], probe: str) -> dict[Words, str]:
    """Which of the links' commands are refused when they are sent."""
    with _connection(client) as connection:
        replies = _ask(connection, *((*form, probe) if form == ("mget",) else form for form in forms.values()))
    return {
        words: str(reply) for words, reply in zip(forms, replies, strict=True) if isinstance(reply, NoPermissionError)
    }


def _refused(client: redis.Redis, commands: dict[Words, Words], probe: str, user: str | None) -> dict[Words, str]:
    """Which of some commands are refused, and why.

    Redis looks at rights only if the number of words fits: words are added until it does.
    """
    refused: dict[Words, str] = {}
    left = commands
    while left:
        replies = _would_reply(client, list(left.values()), user)
        again = {}
        for (name, words), reply in zip(left.items(), replies, strict=True):
            if "wrong number of arguments" in reply and len(words) < MAX_WORDS:
                again[name] = (*words, probe)
            elif "permission" in reply.lower():
                refused[name] = reply
        left = again
    return refused


def _would_reply(client: redis.Redis, commands: list[Words], user: str | None) -> list[str]:
    """What Redis would say to these commands, as far as rights go."""
    if not commands:
        return []
    with _connection(client) as connection:
        name = user or user_of(client)
        replies = _ask(connection, *(("ACL", "DRYRUN", name, *words) for words in commands))
        if str(replies[0]).startswith("User '"):
            raise LookupError(f"there is no user {name}")
        if isinstance(replies[0], NoPermissionError):
            [begun] = [None] if user else _ask(connection, ("MULTI",))
            if begun != b"OK":  # else what follows would be run
                raise MayNotLook("+acl|dryrun" if user else "+multi")
            replies = _ask(connection, *commands)
        return [reply.decode(errors="replace") if isinstance(reply, bytes) else str(reply) for reply in replies]


@contextmanager
def _connection(client: redis.Redis) -> Iterator[Any]:
    """One that is closed in the end, and a transaction with it, also for one who may not DISCARD."""
    pool = client.connection_pool
    connection: Any = pool.get_connection()
    try:
        yield connection
    finally:
        connection.disconnect()
        pool.release(connection)


def _ask(connection: Any, *commands: Words) -> list[Any]:
    """The replies as they come, errors among them."""
    connection.send_packed_command(connection.pack_commands(commands))
    replies = []
    for _ in commands:
        try:
            replies.append(connection.read_response())
        except redis.ResponseError as error:
            replies.append(error)
    return replies
