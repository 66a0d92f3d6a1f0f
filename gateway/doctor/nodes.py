"""The servers behind a URL: one, those that the Sentinels know, or those of a cluster.

All are reached as the URL says: with its user, its password, its TLS settings.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar

import redis

from gateway.doctor.needs import SENTINELS, rules
from gateway.store.clients import make_client, make_sentinel, make_sync_node_client
from gateway.store.url import Kind, Place, parse

FIND_SECONDS: Final = 4.0
"""For all there is to do before the first server is known."""
REPLY_SECONDS: Final = 2.0
"""For one connection to open, and for one reply."""
MAX_NODES: Final = 100

Role = Literal["primary", "replica"]
T = TypeVar("T")


class Unreachable(Exception):
    """No server can be asked; the message says why, without secrets."""


@dataclass(frozen=True, slots=True)
class Node:
    """One server."""

    role: Role
    address: str
    client: redis.Redis


@dataclass(frozen=True, slots=True)
class Sentinels:
    """What Sentinel says of the service: how many watch it, and how many must agree that it is down."""

    watching: int
    quorum: int


@dataclass(frozen=True, slots=True)
class Deployment:
    """The servers, and how they were found.

    Args:
        slots: each range of a cluster's slots that somebody serves, its ends included.
        more: how many servers were left out, being more than `MAX_NODES`.
    """

    kind: Kind
    nodes: tuple[Node, ...]
    slots: tuple[tuple[int, int], ...] = ()
    sentinels: Sentinels | None = None
    more: int = 0

    def close(self) -> None:
        for node in self.nodes:
            node.client.close()


def find(url: str, seconds: float = FIND_SECONDS) -> Deployment:
    """The servers behind a URL.

    Raises:
        Unreachable: none answered within `seconds`, or the URL cannot be used.
    """
    try:
        return _within(seconds, lambda: _find(url))
    except TimeoutError:
        raise Unreachable(f"no answer within {seconds:g} s") from None
    except (redis.RedisError, OSError, ValueError) as error:
        raise Unreachable(str(error)) from None


def _find(url: str) -> Deployment:
    place = parse(url)
    if place.kind == "cluster":
        return _cluster(place)
    if place.kind == "sentinel":
        return _sentinel(place)
    # Without a name, as CLIENT SETNAME is a right too.
    client: Any = make_client(url, REPLY_SECONDS, "")
    hello = told(client.execute_command("HELLO"))
    role: Role = "replica" if hello.get("role") in ("slave", "replica") else "primary"
    return Deployment("single", (Node(role, place.path or joined(*place.hosts[0]), client),))


def told(hello: Any) -> dict[str, str]:
    """The texts in the reply to HELLO, which is what any user may ask."""
    pairs = hello.items() if isinstance(hello, dict) else zip(hello[::2], hello[1::2], strict=False)
    return {name.decode(): value.decode(errors="replace") for name, value in pairs if isinstance(value, bytes)}


def joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _sentinel(place: Place) -> Deployment:
    known = make_sentinel(place, REPLY_SECONDS)
    try:
        try:
            states = _first(known.sentinels, lambda one: one.sentinel_masters())
        except redis.exceptions.NoPermissionError as error:
            raise ValueError(f"{error}: the Sentinels' user needs {rules(SENTINELS)}") from None
        state = states.get(place.service)
        if state is None:
            raise ValueError(f"the Sentinels know no service {place.service}")
        primary = known.discover_master(place.service)
        replicas = known.discover_slaves(place.service)
    finally:
        for one in known.sentinels:
            one.close()
    sentinels = Sentinels(int(state["num-other-sentinels"]) + 1, int(state["quorum"]))
    return _deployment(place, [("primary", primary), *(("replica", one) for one in replicas)], sentinels=sentinels)


def _cluster(place: Place) -> Deployment:
    clients: list[Any] = [make_sync_node_client(place, *host, REPLY_SECONDS) for host in place.hosts]
    try:
        # The reply leaves a server's own address out where it does not know it.
        here, table = _first(
            list(zip(place.hosts, clients, strict=True)),
            lambda one: (one[0][0], one[1].execute_command("CLUSTER SLOTS")),
        )
    finally:
        for client in clients:
            client.close()
    roles: dict[tuple[str, int], Role] = {}
    for _, _, primary, *replicas in table:
        roles[_address(primary, here)] = "primary"
        for replica in replicas:
            roles.setdefault(_address(replica, here), "replica")
    if not roles:
        raise ValueError("the cluster serves no slot yet")
    servers = sorted((role, where) for where, role in roles.items())
    return _deployment(place, servers, slots=tuple(sorted((first, last) for first, last, *_ in table)))


def _address(server: list[Any], here: str) -> tuple[str, int]:
    return (server[0] or b"").decode() or here, int(server[1])


def _deployment(place: Place, servers: Sequence[tuple[Role, tuple[str, int]]], **more: Any) -> Deployment:
    nodes = [
        Node(role, joined(*where), make_sync_node_client(place, *where, REPLY_SECONDS))
        for role, where in servers[:MAX_NODES]
    ]
    return Deployment(place.kind, tuple(nodes), more=max(0, len(servers) - MAX_NODES), **more)


def _first(clients: Sequence[Any], ask: Callable[[Any], T]) -> T:
    """The answer of the first who gives one; the last one's error if nobody does."""
    failure: Exception = ValueError("there is nobody to ask")
    for client in clients:
        try:
            return ask(client)
        except (redis.RedisError, OSError) as error:
            failure = error
    raise failure


def _within(seconds: float, work: Callable[[], T]) -> T:
    """What `work` returns or raises, or TimeoutError: a name that is not resolved knows no timeout of ours."""
    done: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(work())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if failed:
        raise failed[0]
    if not done:
        raise TimeoutError
    return done[0]
