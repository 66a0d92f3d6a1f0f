"""`gateway token ...`: revoke a bearer token, and see whether one is revoked."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Final

import typer
from redis import Redis

from gateway.config import parse_span
from gateway.console import Console, open_console, read_secret
from plugins.token_blacklist.plugin import TokenBlacklist
from plugins.token_blacklist.tokens import NotValid, claims_of, id_of, time_in

commands = typer.Typer(name="token", help="Revoke bearer tokens.", no_args_is_help=True)

DEFAULT_TTL: Final = 24 * 3600.0
MAX_TTL: Final = 10 * 365 * 86400.0

Token = Annotated[
    str, typer.Argument(metavar="TOKEN", help="The token as clients send it; - reads it from standard input.")
]


class AlreadyExpired(Exception):
    """The token ended by itself, at `when` (seconds since 1970)."""

    def __init__(self, when: float) -> None:
        super().__init__(when)
        self.when = when


@commands.command()
def revoke(
    token: Token,
    ttl: Annotated[
        str | None, typer.Option(metavar="TIME", help='Of a token that does not say when it ends, such as "24h".')
    ] = None,
) -> None:
    """Revoke a token for as long as it would last; every gateway node refuses it at once."""
    given = read_token(token)
    with open_console() as console:
        try:
            seconds = DEFAULT_TTL if ttl is None else parse_ttl(ttl)
            lasting = revoke_token(console.redis, keys_of(console, given), given, ttl=seconds, now=time.time())
        except AlreadyExpired as error:
            raise console.fail(f"the token expired at {moment(error.when)}: there is nothing to revoke") from None
        except ValueError as error:
            raise console.fail(str(error)) from None
        console.print(f"Revoked until {moment(time.time() + lasting)}.")


@commands.command()
def status(token: Token) -> None:
    """Tell whether a token is revoked. What it says of itself is shown as it is, not verified."""
    given = read_token(token)
    with open_console() as console:
        try:
            found = status_of(console.redis, keys_of(console, given), given)
        except NotValid as error:
            raise console.fail(str(error)) from None
        console.print(f"id       {found.id}")
        console.print(f"expires  {'it does not say' if found.expires is None else moment(found.expires)}")
        if not found.revoked:
            console.print("revoked  no")
        elif found.left is None:
            console.print("revoked  yes, for ever")
        else:
            console.print(f"revoked  yes, until {moment(time.time() + found.left)}")


# -- what they do ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Status:
    """What is known of a token."""

    id: str
    expires: float | None
    """When it ends by its own account, in seconds since 1970."""
    revoked: bool
    left: float | None
    """For how many seconds it stays revoked; None: for ever, or it is not."""


@dataclass(frozen=True, slots=True)
class Place:
    """A key that stands for the token, and how much longer than the token it has to stay."""

    key: str
    leeway: float


def keys_of(console: Console, token: str) -> list[Place]:
    """Where the configured plugins look for a token.

    Raises:
        NotValid: one of them refuses it unseen.
    """
    claims = claims_of(token)
    return [
        Place(plugin.key(plugin.token_id(token, claims), console.prefix), plugin.config.leeway)
        for plugin in console.plugins(TokenBlacklist)
    ]


def revoke_token(redis: Redis, places: Sequence[Place], token: str, *, ttl: float, now: float) -> float:
    """Revoke a token until it ends by itself, or for `ttl` seconds if it does not say when; how long, in seconds.

    Raises:
        AlreadyExpired: it has ended by itself.
    """
    expires = time_in(claims_of(token), "exp")
    lasting = 0
    for place in places:
        left = ttl if expires is None else min(expires + place.leeway - now, MAX_TTL)
        if left <= 0:
            assert expires is not None
            raise AlreadyExpired(expires)
        milliseconds = math.ceil(left * 1000)
        redis.set(place.key, "revoked", px=milliseconds)
        lasting = max(lasting, milliseconds)
    return lasting / 1000


def status_of(redis: Redis, places: Sequence[Place], token: str) -> Status:
    """Whether a token is revoked, and until when."""
    claims = claims_of(token)
    # PTTL: -2 for a key that is not there, -1 for one that stays.
    left = [milliseconds for place in places if (milliseconds := int(redis.pttl(place.key))) != -2]
    lasting = max(left) / 1000 if left and -1 not in left else None
    return Status(id_of(token, claims), time_in(claims, "exp"), bool(left), lasting)


def read_token(argument: str) -> str:
    """The token, without the `Bearer` that may have been copied with it.

    Raises:
        typer.BadParameter: there is none.
    """
    token = read_secret(argument).strip()
    if token[:7].lower() == "bearer ":
        token = token[7:].strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise typer.BadParameter("expected one token as clients send it, without spaces", param_hint="TOKEN")
    return token


def parse_ttl(text: str) -> float:
    """A time as the configuration has it, in seconds.

    Raises:
        ValueError: it is none, or out of range.
    """
    seconds = float(parse_span(text))
    if not 0 < seconds <= MAX_TTL:
        raise ValueError("expected a --ttl of more than nothing and at most ten years")
    return seconds


def moment(seconds: float) -> str:
    """A time for people, in UTC."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, ValueError, OSError):
        return "a time beyond the calendar"
