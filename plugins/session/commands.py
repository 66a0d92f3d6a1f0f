"""`gateway session ...`: look at sessions and end them. Nothing here searches the keyspace."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Final, cast

import typer
from redis import Redis
from rich.table import Table

from gateway.console import Console, garbage_is_nothing, open_console, read_secret
from plugins.session.plugin import Session
from plugins.session.sessions import MAX_SESSIONS_OF_USER, Layout, parse_time

commands = typer.Typer(name="session", help="Look at sessions and end them.", no_args_is_help=True)

BATCH: Final = 500
MAX_SHOWN: Final = 200

ID_HELP: Final = "As `list` shows it, or as the client sends it; - reads it from standard input."


@commands.command("list")
def list_sessions(
    user: Annotated[str, typer.Argument(metavar="USER", help="The user's id.")],
    limit: Annotated[int, typer.Option(min=1, max=MAX_SESSIONS_OF_USER, help="Show at most so many.")] = 100,
) -> None:
    """List a user's sessions, the one that lasts longest first."""
    with open_console() as console:
        layouts = layouts_of(console)
        total, found = sessions_of(console.redis, layouts, user, limit=limit)
        if not found:
            console.print(f"{shown(user)} has no session.")
            return
        table = Table(box=None, pad_edge=False)
        table.add_column("session", no_wrap=True)
        table.add_column("ends in", justify="right", no_wrap=True)
        for stored, expires in found:
            table.add_row(stored if layouts[0].hash_ids else shortened(stored), span(expires - time.time()))
        console.print(table)
        if total > limit:
            console.print(f"Up to {total - limit} more: see --limit.")


@commands.command()
def show(session_id: Annotated[str, typer.Argument(metavar="ID", help=ID_HELP)]) -> None:
    """Show what a session holds."""
    given = read_secret(session_id)
    with open_console() as console:
        for layout in layouts_of(console):
            for stored in candidates(layout, given):
                fields = fields_of(console.redis, layout.key(stored))
                if fields:
                    print_session(console, layout, stored, fields)
                    return
        raise console.fail("there is no such session; it may have ended")


@commands.command()
def revoke(
    session_id: Annotated[str | None, typer.Argument(metavar="ID", help=ID_HELP)] = None,
    user: Annotated[str | None, typer.Option(metavar="USER", help="End all sessions of this user.")] = None,
) -> None:
    """End one session, or all of a user; every gateway node refuses them at once."""
    with open_console() as console:
        layouts = layouts_of(console)
        if (session_id is None) == (user is None):
            raise console.fail("give the ID of one session, or --user USER for all of a user's sessions")
        if user is not None:
            count = revoke_user(console.redis, layouts, user)
            console.print(f"Ended {count} session{'' if count == 1 else 's'} of {shown(user)}.")
        elif revoke_session(console.redis, layouts, read_secret(session_id or "")):
            console.print("Ended the session.")
        else:
            raise console.fail("there is no such session; it may have ended")


# -- what they do ------------------------------------------------------------------------------


def layouts_of(console: Console) -> list[Layout]:
    """Where the configured plugins keep their sessions."""
    return [plugin.layout(console.prefix) for plugin in console.plugins(Session)]


def candidates(layout: Layout, given: str) -> list[str]:
    """The stored ids that a person may mean: it is one already, or it is what the client sends."""
    return list(dict.fromkeys((given, layout.stored(given))))


def sessions_of(
    redis: Redis, layouts: Sequence[Layout], user: str, *, limit: int
) -> tuple[int, list[tuple[str, float]]]:
    """How many sessions the index names at most, and the live ones among its last `limit`: stored id and end."""
    key = layouts[0].index(user)
    named: list[bytes] = []
    total = 0
    with garbage_is_nothing():
        named = cast(list[bytes], redis.zrange(key, 0, limit - 1, desc=True))
        total = redis.zcard(key)
    found = []
    for name in named:
        stored = name.decode("utf-8", "replace")
        for layout in layouts:
            fields = fields_of(redis, layout.key(stored))
            with contextlib.suppress(KeyError, ValueError):
                expires = end_of(redis, layout, stored, fields)
                if expires > time.time():
                    found.append((stored, expires))
                    break
    return total, found


def end_of(redis: Redis, layout: Layout, stored: str, fields: Mapping[bytes, bytes]) -> float:
    """When a session ends, in seconds since 1970; infinite where nothing says so.

    Raises:
        KeyError: it has no field with its end.
        ValueError: the field is not to be understood.
    """
    if layout.expires_field:
        return parse_time(fields[layout.expires_field.encode()].decode())
    milliseconds = redis.pttl(layout.key(stored))
    return math.inf if milliseconds == -1 else time.time() + milliseconds / 1000


def fields_of(redis: Redis, key: str) -> dict[bytes, bytes]:
    """A session's hash; empty where there is none, or something else."""
    fields: dict[bytes, bytes] = {}
    with garbage_is_nothing():
        fields.update(cast(dict[bytes, bytes], redis.hgetall(key)))
    return fields


def revoke_session(redis: Redis, layouts: Sequence[Layout], given: str) -> bool:
    """End one session; whether there was one."""
    ended = False
    for layout in layouts:
        for stored in candidates(layout, given):
            user = fields_of(redis, layout.key(stored)).get(layout.user_field.encode())
            if redis.unlink(layout.key(stored)):
                ended = True
                if user is not None:
                    with garbage_is_nothing():
                        redis.zrem(layout.index(user.decode("utf-8", "replace")), stored)
    return ended


def revoke_user(redis: Redis, layouts: Sequence[Layout], user: str) -> int:
    """End all sessions in a user's index; how many there were."""
    index = layouts[0].index(user)
    ended = 0
    with garbage_is_nothing():
        while names := cast(list[bytes], redis.zrange(index, 0, BATCH - 1)):
            # One key a command: they lie in different slots of a cluster.
            pipeline = redis.pipeline(transaction=False)
            for name in names:
                for layout in layouts:
                    pipeline.unlink(layout.key(name.decode("utf-8", "replace")))
            ended += sum(pipeline.execute())
            redis.zrem(index, *names)
    return ended


def print_session(console: Console, layout: Layout, stored: str, fields: dict[bytes, bytes]) -> None:
    """A session's fields as a table."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("session", stored if layout.hash_ids else shortened(stored))
    table.add_row("key lives", span(console.redis.pttl(layout.key(stored)) / 1000))
    for name, value in sorted(fields.items()):
        table.add_row(shown(name.decode("utf-8", "replace")), shown(value.decode("utf-8", "replace")))
    console.print(table)


def shortened(stored: str) -> str:
    """An id that stands in Redis as it is, so that reading it over a shoulder is of no use."""
    return f"{stored[:6]}…"


def shown(text: str) -> str:
    """Text from Redis for a terminal: bounded, and without what would steer it."""
    clean = "".join(character if character.isprintable() else "�" for character in text[:MAX_SHOWN])
    return clean + ("…" if len(text) > MAX_SHOWN else "")


def span(seconds: float) -> str:
    """`23 h 59 min`; `for ever` for what never ends."""
    if not 0 <= seconds < math.inf:
        return "for ever"
    minutes = int(seconds // 60)
    if minutes < 1:
        return f"{int(seconds)} s"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"
