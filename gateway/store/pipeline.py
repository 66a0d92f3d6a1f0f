"""What goes through one Redis connection: commands in their order, replies in the same.

`gateway.store.link` makes the connection, keeps it, and ends what waits too long; the rules are there.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, cast

import hiredis
from mypy_extensions import mypyc_attr

from gateway.store.answer import RedisDown, Waiting

if TYPE_CHECKING:
    from gateway.store.link import Link, LinkOptions

logger = logging.getLogger("gateway.redis")

NOT_COMPLETE: Final = object()
# Errors that tell that nothing on this connection can be decided: it is dropped, and the next one is to the primary.
NO_PRIMARY: Final = frozenset({"READONLY", "MASTERDOWN", "LOADING"})


@mypyc_attr(allow_interpreted_subclasses=True)
class Pipeline:
    """The commands of a tick leave together, and each reply goes to who waits for it.

    Args:
        options: within which bounds.
        on_push: takes what the server says unasked.
    """

    def __init__(self, options: LinkOptions, on_push: Callable[[list[Any]], None]) -> None:
        self.options = options
        self.up = False
        self.stalled = False
        """It is up, but a reply has not come within `timeout`, nor has one to a PING since."""
        self.why_down = "not connected yet"
        self.writes = 0
        self.commands = 0
        self.room = 0
        """So many may wait for a reply; nobody may while it is down, or does not answer in time."""
        self.outbox: list[bytes] = []
        self.replies: deque[Waiting | None] = deque()
        """Who waits for one, in their order. `Redis.send` writes here and to `outbox` as `put` does."""
        self._on_push = on_push
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._reader: Any = new_reader()
        self._asked = 0  # how many commands were ever written on this connection
        self._batches: deque[tuple[int, float]] = deque()  # (_asked at the flush, when)
        self._timer: asyncio.TimerHandle | None = None
        self._heard = 0.0

    @property
    def open(self) -> bool:
        """Whether commands can be put: it is up, answers in time, and its queue has room.

        `Redis` has this written out where each request comes by.
        """
        return len(self.replies) < self.room

    @property
    def takes(self) -> bool:
        """The same for what nobody waits for: it may wait with a server that does not answer in time."""
        return self.up and len(self.replies) < self.options.max_queue

    @property
    def waiting(self) -> int:
        """How many replies are outstanding."""
        return len(self.replies)

    @property
    def heard(self) -> float:
        """When the server has last said something, by the loop's clock."""
        return self._heard

    def put(self, packed: bytes, entry: Waiting | None) -> None:
        """Queue one packed command; the caller has looked at `open`, and calls `flush` this tick."""
        self.outbox.append(packed)
        self.replies.append(entry)

    def flush(self) -> None:
        """Write all that was put since the last flush, at once."""
        outbox = self.outbox
        if not outbox or self._transport is None:
            return
        self._transport.write(outbox[0] if len(outbox) == 1 else b"".join(outbox))
        self.commands += len(outbox)
        self._asked += len(outbox)
        now = self._loop.time()
        self._batches.append((self._asked, now))
        if self._timer is None and self.up:  # the handshake has `CONNECT_SECONDS`
            self._timer = self._loop.call_at(now + self.options.timeout, self._expire)
        self.writes += 1
        outbox.clear()

    def received(self, data: bytes) -> None:
        """Bytes from the server."""
        self._heard = self._loop.time()
        reader = self._reader
        waiting = self.replies
        try:
            reader.feed(data)
            while (reply := reader.gets()) is not NOT_COMPLETE:
                kind = type(reply)
                if kind is hiredis.PushNotification:
                    self._on_push(reply)
                    continue
                entry = waiting.popleft()
                if kind is hiredis.ReplyError:
                    self._refused(entry, str(reply))
                    if self._transport is None:
                        return
                elif entry is not None:
                    entry.settle(reply)
        except (hiredis.HiredisError, IndexError) as error:
            # Neither garbage nor a reply too many leaves a queue that can be trusted.
            self.drop(f"protocol error: {error or 'a reply nobody asked for'}")

    def _refused(self, entry: Waiting | None, error: str) -> None:
        # When it was asked stands in the batch it left with; those before it have been answered.
        number, batches = self._asked + len(self.outbox) - len(self.replies), self._batches
        while batches and batches[0][0] < number:
            batches.popleft()
        asked = batches[0][1] if batches else self._heard
        if error.partition(" ")[0] in NO_PRIMARY:
            if entry is not None:
                entry.fail(RedisDown(f"Redis is down: {error}"))
            self.drop(error)
        elif entry is not None:
            entry.refuse(error, cast("Link", self), asked + self.options.timeout)
        else:
            logger.warning("redis: a command nobody waits for failed: %s", error)

    def drop(self, why: str) -> None:
        """End this connection."""
        raise NotImplementedError

    def _expire(self) -> None:
        """End what waits for longer than `timeout`."""
        raise NotImplementedError


def new_reader() -> Any:
    """What makes replies of bytes."""
    return hiredis.Reader(notEnoughData=NOT_COMPLETE)
