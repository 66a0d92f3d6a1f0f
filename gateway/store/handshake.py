"""The first words on a connection, and whether its server is one that decisions may be left to."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from gateway.store.answer import RedisError
from gateway.store.script import Script
from gateway.store.url import Address, Place

Command = tuple[bytes | str | int, ...]

LOWEST_VERSION: Final = (7, 0)
OTHER_MODE: Final = {
    b"sentinel": 'this is a Sentinel: expected "redis+sentinel://HOST:PORT/SERVICE"',
    b"cluster": 'this server belongs to a cluster: expected "redis+cluster://HOST:PORT"',
}
# Some servers behind a proxy do not tell.
PRIMARY: Final = (b"master", b"primary", None)


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose links these are: where they go, and who is told.

    Attributes:
        resolve: where the server is, asked anew for each connection; None for a socket.
        on_push: called with each push message, between the replies it came between.
        on_state: called with True when a link is up, with False when it has gone down.
        scripts: what is loaded on each connection, by hash.
        replica: they go to a replica, for reads that decide nothing.
    """

    place: Place
    resolve: Callable[[], Awaitable[Address]] | None
    on_push: Callable[[list[Any]], None]
    on_state: Callable[[bool], None]
    scripts: dict[bytes, Script]
    replica: bool = False


def handshake(owner: Owner, client_name: str, *, tracking: bool) -> list[Command]:
    """The commands, `HELLO` first; if each succeeds, the connection may be used."""
    place = owner.place
    hello: Command = ("HELLO", 3)
    if place.password:
        hello += ("AUTH", place.username or "default", place.password)
    commands: list[Command] = [(*hello, "SETNAME", client_name)]
    if place.db:
        commands.append(("SELECT", place.db))
    if owner.replica and place.kind == "cluster":
        commands.append(("READONLY",))
    if tracking:
        # OPTIN: only what the mirror asks for is tracked. Otherwise every key that a script reads would be,
        # and each count of a limit would push an invalidation to all workers.
        commands.append(("CLIENT", "TRACKING", "ON", "OPTIN"))
    commands += [("SCRIPT", "LOAD", script.source) for script in owner.scripts.values()]
    # HELLO succeeds while a server is still loading its data; this does not.
    commands.append(("PING",))
    return commands


def check_server(hello: dict[bytes, Any], owner: Owner) -> str:
    """The server's name and version from the reply to HELLO.

    Raises:
        RedisError: the server is none that decisions may be left to, where there are any.
    """
    version = check_version(hello)
    mode = hello.get(b"mode", b"")
    if mode in OTHER_MODE and not (mode == b"cluster" and owner.place.kind == "cluster"):
        raise RedisError(OTHER_MODE[mode])
    if not owner.replica and hello.get(b"role") not in PRIMARY:
        raise RedisError("this is a replica, and decisions need the primary")
    return version


def check_version(hello: dict[bytes, Any]) -> str:
    """The server's name and version.

    Raises:
        RedisError: the server is older than Redis 7, whose pushes can land inside a reply.
    """
    version = hello.get(b"version", b"?").decode()
    name = hello.get(b"server", b"redis").decode()
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if numbers and numbers < LOWEST_VERSION:
        raise RedisError(f"{name} {version} is too old: Redis 7 or Valkey is needed")
    return f"{name} {version}"
