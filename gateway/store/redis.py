"""Redis, as a plugin sees it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, Final

import hiredis

from gateway.store.answer import Answer, Down, RedisDown, RedisTimeout, Reply
from gateway.store.link import Link, LinkOptions, pack
from gateway.store.mirror import Mirror
from gateway.store.script import Script

logger = logging.getLogger("gateway.redis")

Part = bytes | str | int | float

CACHING_YES: Final = pack(("CLIENT", "CACHING", "YES"))
MAX_COMPLAINTS: Final = 1000
# Characters of the last part of a key that the log shows.
SHOWN: Final = 8
# Commands that change nothing: after any other one this worker's own mirror must not answer for the key.
READS: Final = frozenset(
    {"GET", "MGET", "HGETALL", "HGET", "HMGET", "EXISTS", "TTL", "PTTL", "TYPE", "STRLEN", "ZSCORE"}
)


class Call:
    """A script call, prepared: ask it as often as you like. Keep it where the same call is made again and again.

    Args:
        keys: all in one hash tag.
        bulk: see `Redis.ask`.
    """

    __slots__ = ("args", "bulk", "keys", "packed", "script")

    def __init__(self, script: Script, keys: Sequence[Part], args: Sequence[Part] = (), *, bulk: bool = False) -> None:
        self.script = script
        self.keys = tuple(_key(key) for key in keys)
        self.args = args
        self.bulk = bulk
        self.packed = pack(("EVALSHA", script.sha, len(self.keys), *self.keys, *args))


class Read:
    """A reading command, or a script that only reads, on one key; prepared. See `Redis.read` for the arguments."""

    __slots__ = ("bulk", "command", "key", "packed", "parse")

    def __init__(
        self, command: str | Script, key: Part, *, parse: Callable[[Any], Any] | None = None, bulk: bool = False
    ) -> None:
        self.command = command
        self.key = _key(key)
        self.parse = parse
        self.bulk = bulk
        self.packed = b""  # made when it is first needed: the mirror answers most


class Gets:
    """GETs on several keys, prepared; all with the same `bulk`."""

    __slots__ = ("bulk", "packed", "parsing")

    def __init__(self, reads: Sequence[Read]) -> None:
        self.parsing = [(number, read) for number, read in enumerate(reads) if read.parse is not None]
        self.bulk = reads[0].bulk
        self.packed = pack(("MGET", *[read.key for read in reads]))


class Redis:
    """The questions a plugin can ask. Those of one loop tick, of all requests, leave in one write per link.

    Every answer ends within `redis.timeout`: with the reply, with `RedisError` (Redis refused the command), or with
    `RedisDown` (it could not be asked, or did not answer). While a link is down it is `RedisDown` at once.

    Args:
        options: where Redis is and within which bounds.
        mirror_bytes: the mirror's bound; 0 turns it off.
        prefix: what the names of all keys begin with.
    """

    def __init__(self, options: LinkOptions, *, mirror_bytes: int = 64 << 20, prefix: str = "gateway") -> None:
        self.prefix = prefix
        self.mirror = Mirror(mirror_bytes)
        self.tick = 0
        """Grows by one with each flush; asks with the same tick share their round trip."""
        self.asked = 0
        """How many questions went to Redis (the mirror's answers do not count)."""
        self._loop = asyncio.get_running_loop()
        self._main = Link(options, self._on_push, self._on_state, name="main")
        self._bulk = Link(options, self._on_push, self._on_state, name="bulk")
        self._scheduled = False
        self._reading: dict[bytes, _Reading] = {}
        self._complained: set[bytes] = set()

    def __repr__(self) -> str:
        return f"<Redis {self._main!r} {self._bulk!r} {self.mirror!r}>"

    @property
    def up(self) -> bool:
        """Whether questions are answered now."""
        return self._main.up and self._bulk.up

    @property
    def links(self) -> tuple[Link, ...]:
        return (self._main, self._bulk)

    async def start(self) -> None:
        """Connect. Returns after the first try, whether it succeeded or not: the links keep trying."""
        await asyncio.gather(*(link.start() for link in self.links))

    async def stop(self) -> None:
        self._flush()
        await asyncio.gather(*(link.stop() for link in self.links))

    def register(self, *scripts: Script) -> None:
        """Have scripts loaded on every connect, so that no request meets `NOSCRIPT`. Call it in `Plugin.start`."""
        for script in scripts:
            for link in self.links:
                link.scripts[script.sha] = script
                if link.up:
                    self._send(link, pack(("SCRIPT", "LOAD", script.source)), None)

    # -- questions ---------------------------------------------------------------------------------

    def ask(self, *command: Part, bulk: bool = False) -> Answer:
        """Any command on one key, which is its second word. It leaves with this tick's write.

        Args:
            bulk: the value is large: use the link that cannot delay a limit decision. A key must always be
                asked with the same `bulk`, or its invalidation could overtake its reply.
        """
        link = self._bulk if bulk else self._main
        if not link.open:
            return Down(self._why(link))
        if command[0] not in READS and len(command) > 1:
            self.mirror.drop(_key(command[1]))
        reply = Reply()
        self._send(link, pack(command), reply)
        return reply

    def run(self, script: Script, keys: Sequence[Part], args: Sequence[Part] = (), *, bulk: bool = False) -> Answer:
        """Run a script by its hash; it is loaded where Redis does not know it. All keys share one hash tag."""
        return self.call(Call(script, keys, args, bulk=bulk))

    def call(self, call: Call) -> Answer:
        """The same with a prepared call."""
        link = self._bulk if call.bulk else self._main
        if not link.open:
            return Down(self._why(link))
        for key in call.keys:
            self.mirror.drop(key)
        reply = _Run(self, call)
        self._send(link, call.packed, reply)
        return reply

    def read(
        self,
        command: str | Script,
        key: Part,
        *,
        parse: Callable[[Any], Any] | None = None,
        bulk: bool = False,
    ) -> Answer:
        """A reading command on one key, through the mirror: the answer may be there already (`Known`).

        A value of the wrong type, or one that `parse` cannot read, counts as absent (None) and is logged once.

        Args:
            command: always the same for one key: `GET`, `HGETALL`, `EXISTS`, ... or a script with this one key.
            parse: turns the reply into what is kept and returned; raises ValueError for garbage.
                Always the same for one key.
        """
        return self.look(Read(command, key, parse=parse, bulk=bulk))

    def look(self, read: Read) -> Answer:
        """The same with a prepared command."""
        name = read.key
        mirrored = self.mirror.max_bytes
        if mirrored:
            known = self.mirror.get(name)
            if known is not None:
                return known
            reading = self._reading.get(name)
            if reading is not None:
                return reading
        link = self._bulk if read.bulk else self._main
        if not link.open:
            return Down(self._why(link))
        reading = _Reading(self, name, read.parse)
        if mirrored:
            self._reading[name] = reading
            self._send(link, CACHING_YES, None)
        if not read.packed:
            command = read.command
            # By its source, as nobody would load it where Redis has forgotten the hash.
            read.packed = pack(("EVAL_RO", command.source, 1, name) if type(command) is Script else (command, name))
        self._send(link, read.packed, reading)
        return reading

    def gets(self, gets: Gets) -> Answer:
        """The values of several keys as one list, as Redis has them now: the mirror is passed by.

        Without a mirror this is cheaper than single reads. A value of the wrong type, or one that its `parse` cannot
        read, counts as absent.
        """
        link = self._bulk if gets.bulk else self._main
        if not link.open:
            return Down(self._why(link))
        reply = _Gets(self, gets)
        self._send(link, gets.packed, reply)
        return reply

    def tell(self, *command: Part, bulk: bool = False) -> None:
        """A command whose reply nobody waits for. While the link is down it is lost."""
        link = self._bulk if bulk else self._main
        if not link.open:
            return
        if len(command) > 1:
            self.mirror.drop(_key(command[1]))
        self._send(link, pack(command), None)

    def last_known(self, key: Part, seconds: float = float("inf")) -> Any:
        """While the connection is lost: what was mirrored of a key then, unless Redis has been silent for so many
        seconds; else None. It may have changed since, and nobody has told: for who has chosen to live with that.
        """
        return self.mirror.lost(_key(key), self._loop.time() - seconds)

    def forget(self, key: Part) -> None:
        """Answer for a key only once it was read again, by `last_known` too."""
        self.mirror.forget(_key(key))

    def changed(self, key: Part) -> asyncio.Future[None]:
        """A future that is done once Redis withdraws a key that was read, or the link is lost; cancel it after use."""
        return self.mirror.watch(_key(key))

    # -- inside ------------------------------------------------------------------------------------

    def _send(self, link: Link, packed: bytes, entry: Any) -> None:
        self.asked += 1
        link.put(packed, entry)
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._scheduled = False
        self.tick += 1
        self._main.flush()
        self._bulk.flush()

    def _on_push(self, push: list[Any]) -> None:
        if push[0] == b"invalidate":
            self.mirror.invalidate(push[1])

    def _on_state(self, up: bool) -> None:
        # Pushes may have been missed on the way: what was read before is not trusted any more.
        if self.up:
            self.mirror.clear()
        else:
            self.mirror.lose(min([link.heard for link in self.links if not link.up]))

    @staticmethod
    def _why(link: Link) -> RedisDown:
        if link.stalled:
            return RedisTimeout(f"Redis does not answer within {link.options.timeout * 1000:.0f} ms")
        if link.up:
            return RedisDown(f"the queue to Redis is full ({link.waiting} commands)")
        return RedisDown(f"Redis is down: {link.why_down}")

    def parsed(self, parse: Callable[[Any], Any] | None, key: bytes, reply: Any) -> Any:
        """A reply as `parse` reads it; None where it cannot."""
        if parse is None:
            return reply
        try:
            return parse(reply)
        except Exception as error:
            self.complain(key, f"something unreadable ({error})")
            return None

    def complain(self, key: bytes, what: str) -> None:
        """One line per key about something unreadable in Redis."""
        if key not in self._complained and len(self._complained) < MAX_COMPLAINTS:
            self._complained.add(key)
            logger.warning("redis: %s holds %s; it counts as absent", shown(key), what)


class _Reading(Reply):
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
        redis, key = self._redis, self._key
        if redis._reading.get(key) is self:
            del redis._reading[key]
        if type(reply) is hiredis.ReplyError:
            if not str(reply).startswith("WRONGTYPE"):
                super().settle(reply)
                return
            redis.complain(key, "a value of another type")
            value = None
        else:
            value = redis.parsed(self._parse, key, reply)
        if redis.mirror.max_bytes:
            redis.mirror.put(key, value, weight(reply))
        if not self.ready:
            self.value = value
            self._arrived()

    def fail(self, error: RedisDown) -> bool:
        # A late reply may still come: who asks from now on must ask anew.
        if self._redis._reading.get(self._key) is self:
            del self._redis._reading[self._key]
        return super().fail(error)


class _Gets(Reply):
    """An MGET in flight."""

    __slots__ = ("_gets", "_redis")

    bulky = True

    def __init__(self, redis: Redis, gets: Gets) -> None:
        super().__init__()
        self._redis = redis
        self._gets = gets

    def settle(self, reply: Any) -> None:
        if type(reply) is list:
            for number, read in self._gets.parsing:
                reply[number] = self._redis.parsed(read.parse, read.key, reply[number])
        super().settle(reply)


class _Run(Reply):
    """A script call in flight; sends the source where Redis has forgotten the hash."""

    __slots__ = ("_call", "_redis")

    def __init__(self, redis: Redis, call: Call) -> None:
        self.ready = False
        self.value = self.error = self._callback = None
        self._redis = redis
        self._call: Call | None = call

    def settle(self, reply: Any) -> None:
        if type(reply) is hiredis.ReplyError:
            if not self._sent_again(reply):
                super().settle(reply)
        elif not self.ready:
            self.value = reply
            self._arrived()

    def _sent_again(self, error: hiredis.ReplyError) -> bool:
        """Whether it was the hash that was not known, and the source is on its way now."""
        call, self._call = self._call, None
        if call is None or not str(error).startswith("NOSCRIPT"):
            return False
        redis = self._redis
        link = redis._bulk if call.bulk else redis._main
        if link.up:
            packed = pack(("EVAL", call.script.source, len(call.keys), *call.keys, *call.args))
            redis._send(link, packed, self)
        return link.up


def _key(key: Part) -> bytes:
    return key if type(key) is bytes else str(key).encode()


def shown(key: bytes) -> str:
    """A key's name for the log. Its last part may be a secret (a session's id): it is shortened."""
    name, colon, last = key.decode("utf-8", "replace").rpartition(":")
    return f"{name}{colon}{last if len(last) <= SHOWN else last[:SHOWN] + '...'}"


def weight(reply: Any) -> int:
    """About how many bytes a reply takes."""
    if isinstance(reply, bytes | str):
        return len(reply)
    if isinstance(reply, dict):
        return sum(weight(key) + weight(value) + 100 for key, value in reply.items())
    if isinstance(reply, list | tuple | set):
        return sum(weight(item) + 50 for item in reply)
    return 32
