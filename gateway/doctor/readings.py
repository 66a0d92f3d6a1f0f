"""What one server tells of itself, each thing bounded in time; or why it does not."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import redis
from redis.exceptions import NoPermissionError

from gateway.doctor import keys, rights
from gateway.doctor.keys import Sample
from gateway.doctor.needs import Words
from gateway.doctor.nodes import Node, told
from gateway.doctor.rights import Lacking, MayNotLook

PINGS: Final = 200
PING_SECONDS: Final = 2.0
CLOCK_TRIES: Final = 5
SLOW_ENTRIES: Final = 128

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Unread:
    """It could not be read.

    Args:
        why: in words.
        rule: what ACL SETUSER would have to grant; empty if that is not the reason.
    """

    why: str
    rule: str = ""


@dataclass(frozen=True, slots=True)
class Clock:
    """Theirs against ours, in seconds.

    Args:
        ahead: positive if theirs is ahead.
        accuracy: half the round trip: so far `ahead` may be off.
    """

    ahead: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Slow:
    """An entry of the slow log."""

    seconds: float
    command: str
    """With its arguments as far as the log has them: they may be secrets."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What was read from one server."""

    node: Node
    hello: dict[str, str] | Unread
    info: dict[str, Any] | Unread
    save: str | Unread
    slow: list[Slow] | Unread
    pings: list[float] | Unread
    """Round trips in seconds."""
    clock: Clock | Unread
    clients: list[str] | Unread
    """Names of the connections."""
    lacking: Lacking | Unread
    sample: Sample | Unread | None
    """None for a replica, which has its primary's keys."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to look at.

    Args:
        prefix: what the names of our keys begin with.
        templates: names of keys elsewhere, with `{id}` in them.
        commands: what the gateway sends.
        user: whose rights to look at; None for those of the one that is connected.
        max_keys: look at most at so many keys of one server.
        seconds: and for at most so long.
    """

    prefix: str
    templates: Sequence[str]
    commands: Sequence[Words]
    user: str | None
    max_keys: int
    seconds: float


def read(node: Node, wanted: Wanted, progress: keys.Progress | None = None) -> Reading:
    """Ask one server everything; once it does not answer it is not asked again."""
    asker = _Asker()
    client: Any = node.client
    names = [f"{wanted.prefix}:{{id}}", *wanted.templates]
    probes = {name.replace("{id}", "doctor"): name.replace("{id}", "*") for name in names}
    return Reading(
        node=node,
        hello=asker.ask("", lambda: told(client.execute_command("HELLO"))),
        info=asker.ask("+info", client.info),
        save=asker.ask("+config|get", lambda: str(client.config_get("save").get("save", ""))),
        slow=asker.ask("+slowlog|get", lambda: _slow(client)),
        pings=asker.ask("+ping", lambda: ping(client.ping)),
        clock=asker.ask("+time", lambda: compare(client.time)),
        clients=asker.ask("+client|list", lambda: [str(one.get("name", "")) for one in client.client_list()]),
        lacking=asker.ask("", lambda: rights.lacking(client, wanted.commands, probes, wanted.user)),
        sample=None
        if node.role == "replica"
        else asker.ask(
            "+dbsize +scan +pttl",
            lambda: keys.sample(
                client,
                wanted.prefix,
                wanted.templates,
                max_keys=wanted.max_keys,
                seconds=wanted.seconds,
                progress=progress,
            ),
        ),
    )


class _Asker:
    """Asks until there is no answer any more."""

    def __init__(self) -> None:
        self._lost: Unread | None = None

    def ask(self, rule: str, question: Callable[[], T]) -> T | Unread:
        """What `question` returns; why not, if it raises.

        Args:
            rule: what the user needs for it.
        """
        if self._lost is not None:
            return self._lost
        try:
            return question()
        except MayNotLook as error:
            return Unread("the user may not look", str(error))
        except LookupError as error:
            return Unread(str(error))
        except NoPermissionError:
            return Unread("the user may not look", rule)
        except (redis.ConnectionError, redis.TimeoutError, OSError) as error:
            self._lost = Unread(f"no answer: {error}")
            return self._lost
        except redis.RedisError as error:
            return Unread(str(error))


def ping(
    send: Callable[[], Any],
    count: int = PINGS,
    seconds: float = PING_SECONDS,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """The round trips of so many pings one after the other, or of as many as fit into the time."""
    until = clock() + seconds
    trips: list[float] = []
    while len(trips) < count:
        began = clock()
        if trips and began >= until:
            break
        send()
        trips.append(clock() - began)
    return trips


def compare(ask: Callable[[], tuple[int, int]], now: Callable[[], float] = time.time) -> Clock:
    """Their clock against ours, by the quickest of a few tries; half the round trip is taken off."""
    found = []
    for _ in range(CLOCK_TRIES):
        began = now()
        seconds, microseconds = ask()
        ended = now()
        found.append(Clock(seconds + microseconds / 1e6 - (began + ended) / 2, (ended - began) / 2))
    return min(found, key=lambda clock: clock.accuracy)


def _slow(client: Any) -> list[Slow]:
    return [Slow(entry["duration"] / 1e6, _text(entry["command"])) for entry in client.slowlog_get(SLOW_ENTRIES)]


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
