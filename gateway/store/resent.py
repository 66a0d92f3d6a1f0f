"""A command under way in a cluster, and what becomes of it where its server says that another one has the key.

MOVED      the slot has moved: ask there, and learn it
ASK        the slot is moving, and this key is there already: ask there, this once
TRYAGAIN   the slot is moving, and of several keys some are: the same again after a pause

All within `redis.timeout` of the first time it was sent.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from gateway.store.answer import RedisDown, RedisTimeout, Waiting
from gateway.store.link import Link
from gateway.store.prepared import CACHING_YES, pack
from gateway.store.slots import SLOTS
from gateway.store.url import Address

if TYPE_CHECKING:
    from gateway.store.cluster import Cluster

logger = logging.getLogger("gateway.redis")

ELSEWHERE: Final = frozenset({"MOVED", "ASK", "TRYAGAIN"})
MAX_TRIES: Final = 5
"""How often a command is sent again, because of redirects and pauses together."""
PAUSE_SECONDS: Final = 0.01
"""The first pause; each one is twice as long as that before."""
ASKING: Final = pack(("ASKING",))


class Routed:
    """A command and who waits for its reply.

    Args:
        entry: who waits; None where nobody does.
        mirrored: the key, where the reply is to be kept in the mirror.
    """

    __slots__ = ("_cluster", "_entry", "_epoch", "_mirrored", "_packed")

    def __init__(self, cluster: Cluster, packed: bytes, entry: Waiting | None, mirrored: bytes | None) -> None:
        self._cluster = cluster
        self._entry = entry
        self._epoch = cluster.epoch
        self._mirrored = mirrored
        self._packed = packed

    def settle(self, reply: Any) -> None:
        entry, cluster = self._entry, self._cluster
        if entry is None:
            return
        if self._mirrored is None or cluster.trusts(self._mirrored, self._epoch):
            entry.settle(reply)
        else:
            # Its server may not be the one that is told of changes any more.
            cluster.settle_untrusted(entry, reply, self._mirrored)

    def refuse(self, error: str, link: Link, deadline: float) -> None:
        if error.partition(" ")[0] in ELSEWHERE:
            Resent(self._cluster, self._packed, self._entry, self._mirrored, deadline).go(error, link)
        else:
            self._refused(error, link, deadline)

    def _refused(self, error: str, link: Link, deadline: float) -> None:
        if error.startswith("CLUSTERDOWN"):
            self._cluster.look_again()
            self.fail(RedisDown(f"Redis is down: {error}"))
        elif self._entry is not None:
            self._entry.refuse(error, link, deadline)
        else:
            logger.warning("redis: a command nobody waits for failed: %s", error)

    def fail(self, error: RedisDown) -> bool:
        return self._entry is not None and self._entry.fail(error)


class Resent(Routed):
    """One that is sent again."""

    __slots__ = ("_asking", "_deadline", "_timer", "_tries")

    def __init__(
        self, cluster: Cluster, packed: bytes, entry: Waiting | None, mirrored: bytes | None, deadline: float
    ) -> None:
        super().__init__(cluster, packed, entry, mirrored)
        self._asking = False
        self._deadline = deadline
        self._tries = 0
        self._timer: asyncio.TimerHandle | None = None
        if entry is not None:
            self._timer = cluster.loop.call_at(deadline, self._late)

    def settle(self, reply: Any) -> None:
        self._done()
        super().settle(reply)

    def refuse(self, error: str, link: Link, deadline: float) -> None:
        if error.partition(" ")[0] in ELSEWHERE:
            self.go(error, link)
        else:
            self._done()
            self._refused(error, link, self._deadline)

    def fail(self, error: RedisDown) -> bool:
        self._done()
        return super().fail(error)

    def go(self, error: str, link: Link) -> None:
        """Do what the server says.

        Args:
            link: whence it was said.
        """
        code, _, rest = error.partition(" ")
        if code == "TRYAGAIN":
            self._later(lambda: self._send(link), error)
            return
        try:
            slot, address = redirect(rest, link.where)
        except ValueError:
            # A script may raise whatever it likes.
            self._done()
            self._refused(error, link, self._deadline)
            return
        if code == "MOVED":
            self._cluster.moved(slot, address)
        else:
            self._cluster.is_moving(slot, address)
        self._asking = code == "ASK"
        there = self._cluster.at(address)
        self._tries += 1
        if self._tries > MAX_TRIES:
            self.fail(RedisDown(f"Redis is down: redirected {MAX_TRIES} times, at last by {error}"))
        else:
            self._send(there.main if link.kind == "main" else there.bulk)

    def _send(self, link: Link) -> None:
        if self._timer is None and self._entry is not None:
            return  # too late
        if not link.open:
            # One that has just become a primary may be connected to in a moment.
            self._later(lambda: self._send(link), link.why_down)
            return
        self._epoch = self._cluster.epoch
        # Either word counts for the very next command only.
        if self._asking:
            self._cluster.send(link, ASKING, None)
        elif self._mirrored is not None:
            self._cluster.send(link, CACHING_YES, None)
        self._cluster.send(link, self._packed, self)

    def _later(self, again: Callable[[], None], why: str) -> None:
        loop = self._cluster.loop
        pause = PAUSE_SECONDS * 2**self._tries
        self._tries += 1
        if self._tries > MAX_TRIES or loop.time() + pause >= self._deadline:
            self.fail(RedisDown(f"Redis is down: {why}"))
        else:
            loop.call_later(pause, again)

    def _late(self) -> None:
        self._timer = None
        super().fail(RedisTimeout("no reply from Redis in time: it was redirected"))

    def _done(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def redirect(rest: str, asked: Address | None) -> tuple[int, Address]:
    """Slot and address of a redirect: `3999 127.0.0.1:6381`. Without a host it is the one that was asked.

    Raises:
        ValueError: it is none.
    """
    slot, _, address = rest.partition(" ")
    host, _, port = address.rpartition(":")
    if not host or host == "?":
        host = asked[0] if asked else ""
    if not 0 <= int(slot) < SLOTS:
        raise ValueError("no slot")
    return int(slot), (host.strip("[]"), int(port))
