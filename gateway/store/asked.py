"""Who waits for what Redis has been asked: reads, several at once, script calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from gateway.store.answer import All, Answer, RedisDown, RedisTimeout, Reply
from gateway.store.link import Link
from gateway.store.prepared import Call, Gets, pack

if TYPE_CHECKING:
    from gateway.store.redis import Redis


class Reading(Reply):
    """A read in flight: all who ask meanwhile share its reply."""

    __slots__ = ("_key", "_parse", "_redis")

    def __init__(self, redis: Redis, key: bytes, parse: Callable[[Any], Any] | None) -> None:
        # Not by super(): this runs for each question.
        self.ready = False
        self.value = self.error = self._callback = None
        self._redis = redis
        self._key = key
        self._parse = parse

    def settle(self, reply: Any) -> None:
        redis, parse = self._redis, self._parse
        value = reply if parse is None else redis.parsed(parse, self._key, reply)
        mirror = redis.mirror
        if mirror.max_bytes:
            key = self._key
            if redis._reading.get(key) is self:
                del redis._reading[key]
            mirror.put(key, value, weight(reply))
        if not self.ready:
            self.value = value
            if self._callback is None:
                self.ready = True
            else:
                self._arrived()

    def refuse(self, error: str, link: Link, deadline: float) -> None:
        redis, key = self._redis, self._key
        if redis._reading.get(key) is self:
            del redis._reading[key]
        if not error.startswith("WRONGTYPE"):
            super().refuse(error, link, deadline)
            return
        redis.complain(key, "a value of another type")
        if redis.mirror.max_bytes:
            redis.mirror.put(key, None, 0)
        super().settle(None)

    def fail(self, error: RedisDown) -> bool:
        # A late reply may still come: who asks from now on must ask anew.
        if self._redis._reading.get(self._key) is self:
            del self._redis._reading[self._key]
        return super().fail(error)


class Several(Reply):
    """An MGET in flight."""

    __slots__ = ("_gets", "_redis", "bulky")

    def __init__(self, redis: Redis, gets: Gets) -> None:
        # Not by super(): this runs for each request without a mirror.
        self.ready = False
        self.value = self.error = self._callback = None
        self._redis = redis
        self._gets = gets
        self.bulky = gets.bulk

    def settle(self, reply: Any) -> None:
        for number, read in self._gets.parsing:
            reply[number] = self._redis.parsed(read.parse, read.key, reply[number])
        if not self.ready:
            self.value = reply
            self._arrived()


class Gathered(All):
    """What several of them got, as one list.

    Args:
        places: for each answer, where its values belong.
    """

    __slots__ = ("_places",)

    def __init__(self, answers: Sequence[Answer], places: Sequence[Sequence[int]]) -> None:
        self._places = places
        super().__init__(answers)

    def _complete(self) -> None:
        self.error = next((answer.error for answer in self._answers if answer.error is not None), None)
        if self.error is None:
            values = [None] * sum(map(len, self._places))
            for answer, places in zip(self._answers, self._places, strict=True):
                for place, value in zip(places, answer.value, strict=True):
                    values[place] = value
            self.value = values
        self._arrived()


class Run(Reply):
    """A script call in flight; sends the source where Redis has forgotten the hash."""

    __slots__ = ("_call", "_redis")

    def __init__(self, redis: Redis, call: Call) -> None:
        self.ready = False
        self.value = self.error = self._callback = None
        self._redis = redis
        self._call: Call | None = call

    def settle(self, reply: Any) -> None:
        # Not by super(): this runs for each request.
        if not self.ready:
            self.value = reply
            if self._callback is None:
                self.ready = True
            else:
                self._arrived()

    def refuse(self, error: str, link: Link, deadline: float) -> None:
        call, self._call = self._call, None
        if call is None or not error.startswith("NOSCRIPT") or self.ready:
            super().refuse(error, link, deadline)
            return
        redis = self._redis
        late = RedisTimeout("no reply from Redis in time: it had forgotten a script")
        redis.loop.call_at(deadline, self.fail, late)
        redis.send(link, pack(("EVAL", call.script.source, len(call.keys), *call.keys, *call.args)), self)


def weight(reply: Any) -> int:
    """About how many bytes a reply takes."""
    if isinstance(reply, bytes | str):
        return len(reply)
    if isinstance(reply, dict):
        return sum(weight(key) + weight(value) + 100 for key, value in reply.items())
    if isinstance(reply, list | tuple | set):
        return sum(weight(item) + 50 for item in reply)
    return 32
