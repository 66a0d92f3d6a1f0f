"""Redis, as a plugin sees it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, Final

from gateway.store.answer import All, Answer, Down, RedisDown, RedisTimeout, Reply, Waiting
from gateway.store.asked import Gathered, Reading, Run, Several
from gateway.store.cluster import Cluster
from gateway.store.link import Link, LinkOptions
from gateway.store.mirror import Mirror
from gateway.store.pipeline import Pipeline
from gateway.store.prepared import CACHING_YES, Call, Gets, Part, Read, key_of, pack
from gateway.store.script import Script
from gateway.store.topology import Primary, primary_of
from gateway.store.url import parse

logger = logging.getLogger("gateway.redis")

MAX_COMPLAINTS: Final = 1000
# What the first requests of a tick ask leaves as soon as it is there: Redis begins with it while the rest is made.
AHEAD: Final = 24
# Characters of the last part of a key that the log shows.
SHOWN: Final = 8
# Commands that change nothing: after any other one this worker's own mirror must not answer for the key.
READS: Final = frozenset(
    {"GET", "MGET", "HGETALL", "HGET", "HMGET", "EXISTS", "TTL", "PTTL", "TYPE", "STRLEN", "ZSCORE"}
)


class Redis:
    """The questions a plugin can ask. Those of one loop tick, of all requests, leave together.

    Every answer ends within `redis.timeout`: with the reply, with `RedisError` (Redis refused the command), or with
    `RedisDown` (it could not be asked, or did not answer). While a link is down it is `RedisDown` at once.

    Args:
        options: where Redis is and within which bounds.
        mirror_bytes: the mirror's bound; 0 turns it off.
        prefix: what the names of all keys begin with.

    Raises:
        ValueError: the URL is wrong.
    """

    def __init__(self, options: LinkOptions, *, mirror_bytes: int = 64 << 20, prefix: str = "gateway") -> None:
        self.prefix = prefix
        self.mirror = Mirror(mirror_bytes)
        self.tick = 0
        """Grows by one with each flush; asks with the same tick share their round trip."""
        self.asked = 0
        """How many questions went to Redis (the mirror's answers do not count)."""
        self.loop = asyncio.get_running_loop()
        self._scripts: dict[bytes, Script] = {}
        self._scheduled = False
        self._requests = 0  # whose questions have not left yet
        self._on_links: Callable[[], None] | None = None
        place = parse(options.url)
        # One server has a main and a bulk link. In a cluster there are many, and the key tells which; beside replicas
        # it depends on the question.
        self.reads_replicas = options.read_from == "replica" and place.kind in ("cluster", "sentinel")
        """Whether a `Read` that may come from `anywhere` may be older than what was written before it."""
        self._cluster: Cluster | None = None
        self._primary: Primary | None = None
        self._main: Pipeline | None = None
        self._bulk: Pipeline | None = None
        if place.kind == "cluster":
            self._cluster = Cluster(
                place,
                options,
                self.mirror,
                self._on_push,
                self._on_state,
                self._scripts,
                self.send,
                self._links_changed,
            )
        else:
            self._primary = primary_of(place, options, self._on_push, self._on_state, self._scripts)
            if self._primary.replica is None:
                self._main, self._bulk = self._primary.links
        self._reading: dict[bytes, Reading] = {}
        self._complained: set[bytes] = set()

    def __repr__(self) -> str:
        return f"<Redis {self._cluster or self._primary!r} {self.mirror!r}>"

    @property
    def up(self) -> bool:
        """Whether all questions are answered now."""
        return self._cluster.up if self._cluster is not None else all(link.up for link in self.links)

    @property
    def why_down(self) -> str:
        """What is in the way, for an operator; empty where nothing is."""
        reasons = [f"{link.name}: {link.why_down}" for link in self.links if not link.up]
        reasons += [f"{link.name}: does not answer in time" for link in self.links if link.stalled]
        if self._cluster is not None and self._cluster.why_down:
            reasons.insert(0, self._cluster.why_down)
        return "; ".join(reasons)

    @property
    def links(self) -> tuple[Link, ...]:
        """All that decisions travel on now; those of a cluster come and go."""
        return self._of_any().links

    @property
    def all_links(self) -> tuple[Link, ...]:
        """The same, and those to replicas."""
        return self._of_any().all_links

    def watch_links(self, changed: Callable[[], None]) -> None:
        """Call this when links have come or gone."""
        self._on_links = changed

    async def start(self) -> None:
        """Connect. Returns after the first try, whether it succeeded or not: the links keep trying."""
        await self._of_any().start()

    async def stop(self) -> None:
        self._flush()
        await self._of_any().stop()

    def register(self, *scripts: Script) -> None:
        """Have scripts loaded on every connect, so that no request meets `NOSCRIPT`. Call it in `Plugin.start`."""
        for script in scripts:
            self._scripts[script.sha] = script
            for link in self.links:
                if link.up:
                    self.send(link, pack(("SCRIPT", "LOAD", script.source)), None)

    def ping(self) -> Answer:
        """Ready once each server has answered; an error if one does not."""
        answers = [self._ping(link) for link in self.links if link.kind == "main"]
        return All(answers) if answers else Down(RedisDown(f"Redis is down: {self.why_down}"))

    def _ping(self, link: Link) -> Answer:
        if not link.open:
            return Down(self._why(link))
        reply = Reply()
        self.send(link, pack(("PING",)), reply)
        return reply

    # -- questions ---------------------------------------------------------------------------------

    def ask(self, *command: Part, bulk: bool = False) -> Answer:
        """Any command on one key, which is its second word. It leaves with this tick's write.

        Args:
            bulk: the value is large: use the link that cannot delay a limit decision. A key must always be
                asked with the same `bulk`, or its invalidation could overtake its reply.
        """
        link = (self._bulk if bulk else self._main) or self._link_for(command, bulk)
        if not link.open:
            return Down(self._why(link))
        if command[0] not in READS and len(command) > 1:
            self.mirror.drop(key_of(command[1]))
        reply = Reply()
        self.send(link, pack(command), reply)
        return reply

    def run(self, script: Script, keys: Sequence[Part], args: Sequence[Part] = (), *, bulk: bool = False) -> Answer:
        """Run a script by its hash; it is loaded where Redis does not know it. All keys share one hash tag."""
        return self.call(Call(script, keys, args, bulk=bulk))

    def call(self, call: Call) -> Answer:
        """The same with a prepared call."""
        link = (self._bulk if call.bulk else self._main) or self._link_of(call)
        if len(link.replies) >= link.room:
            return Down(self._why(link))
        for key in call.keys:
            self.mirror.drop(key)
        reply = Run(self, call)
        self.send(link, call.packed, reply)
        return reply

    def reaches(self, key: Part, *, bulk: bool = False) -> bool:
        """Whether a question about this key could leave now: for who would have to work to ask it."""
        return ((self._bulk if bulk else self._main) or self._link_for(("", key), bulk)).open

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
        link = (self._bulk if read.bulk else self._main) or self._link_of(read)
        if len(link.replies) >= link.room:
            return Down(self._why(link))
        reading = Reading(self, name, read.parse)
        if mirrored:
            self._reading[name] = reading
            self.send(link, CACHING_YES, None)
        if not read.packed:
            command = read.command
            # By its source, as nobody would load it where Redis has forgotten the hash.
            read.packed = pack(("EVAL_RO", command.source, 1, name) if type(command) is Script else (command, name))
        self.send(link, read.packed, reading, name if mirrored else None)
        return reading

    def gets(self, gets: Gets) -> Answer:
        """The values of several keys as one list, as Redis has them now: the mirror is passed by.

        Without a mirror this is cheaper than single reads. A value of the wrong type, or one that its `parse` cannot
        read, counts as absent.
        """
        link = self._bulk if gets.bulk else self._main
        if link is None:
            return self._gets_of_slots(gets)
        return self._gets(gets, link)

    def _gets_of_slots(self, gets: Gets) -> Answer:
        if self._cluster is None:
            return self._gets(gets, self._link_of(gets))
        answers = [self._gets(part, self._link_of(part)) for part, _ in gets.by_slot]
        return Gathered(answers, [places for _, places in gets.by_slot])

    def _gets(self, gets: Gets, link: Pipeline) -> Answer:
        if len(link.replies) >= link.room:
            return Down(self._why(link))
        reply = Several(self, gets)
        self.send(link, gets.packed, reply)
        return reply

    def tell(self, *command: Part, bulk: bool = False) -> None:
        """A command whose reply nobody waits for. While the link is down it is lost."""
        link = (self._bulk if bulk else self._main) or self._link_for(command, bulk)
        if not link.takes:
            return
        if len(command) > 1:
            self.mirror.drop(key_of(command[1]))
        self.send(link, pack(command), None)

    def tell_script(
        self, script: Script, keys: Sequence[Part], args: Sequence[Part] = (), *, bulk: bool = False
    ) -> None:
        """A script whose reply nobody waits for; the same."""
        call = Call(script, keys, args, bulk=bulk)
        link = (self._bulk if bulk else self._main) or self._link_of(call)
        if not link.takes:
            return
        for key in call.keys:
            self.mirror.drop(key)
        self.send(link, call.packed, Run(self, call))

    def last_known(self, key: Part, seconds: float = float("inf")) -> Any:
        """While the connection is lost: what was mirrored of a key then, unless Redis has been silent for so many
        seconds; else None. It may have changed since, and nobody has told: for who has chosen to live with that.
        """
        return self.mirror.lost(key_of(key), self.loop.time() - seconds)

    def forget(self, key: Part) -> None:
        """Answer for a key only once it was read again, by `last_known` too."""
        self.mirror.forget(key_of(key))

    def changed(self, key: Part) -> asyncio.Future[None]:
        """A future that is done once Redis withdraws a key that was read, or the link is lost; cancel it after use."""
        return self.mirror.watch(key_of(key))

    # -- inside ------------------------------------------------------------------------------------

    def _of_any(self) -> Cluster | Primary:
        found = self._cluster or self._primary
        assert found is not None
        return found

    def _link_of(self, question: Call | Read | Gets) -> Pipeline:
        return self._of_any().link_of(question)

    def _link_for(self, command: Sequence[Part], bulk: bool) -> Pipeline:
        if self._primary is not None:
            return self._primary.bulk if bulk else self._primary.main
        assert self._cluster is not None
        return self._cluster.link_for(key_of(command[1]) if len(command) > 1 else b"", bulk)

    def send(self, link: Pipeline, packed: bytes, entry: Waiting | None, mirrored: bytes | None = None) -> None:
        """Put a command on a link, and have it leave with this tick's write. For this package only.

        Args:
            mirrored: the key, where the reply is to be kept in the mirror.
        """
        if self._cluster is not None:
            entry = self._cluster.routed(packed, entry, mirrored)
        self.asked += 1
        link.outbox.append(packed)
        link.replies.append(entry)
        if not self._scheduled:
            self._scheduled = True
            self.loop.call_soon(self._flush)

    def all_asked(self) -> None:
        """A request has asked all that it can ask at once."""
        self._requests += 1
        if self._requests == AHEAD:
            self._leave()

    def _flush(self) -> None:
        self._scheduled = False
        self.tick += 1
        self._leave()

    def _leave(self) -> None:
        self._requests = 0
        if self._main is not None and self._bulk is not None:
            self._main.flush()
            self._bulk.flush()
        else:
            for link in self.all_links:
                link.flush()

    def _links_changed(self) -> None:
        if self._on_links is not None:
            self._on_links()

    def _on_push(self, push: list[Any]) -> None:
        if push[0] == b"invalidate":
            self.mirror.invalidate(push[1])

    def _on_state(self, up: bool) -> None:
        # Pushes may have been missed on the way: what was read before is not trusted any more.
        if self.up:
            self.mirror.clear()
        else:
            heard = [link.heard for link in self.links if link.connects and not link.up]
            self.mirror.lose(min(heard, default=self.loop.time()))

    @staticmethod
    def _why(link: Pipeline) -> RedisDown:
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


def shown(key: bytes) -> str:
    """A key's name for the log. Its last part may be a secret (a session's id): it is shortened."""
    name, colon, last = key.decode("utf-8", "replace").rpartition(":")
    return f"{name}{colon}{last if len(last) <= SHOWN else last[:SHOWN] + '...'}"
