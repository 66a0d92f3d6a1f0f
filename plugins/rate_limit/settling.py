"""When Redis is back it is told of what passed without it, so that going around it has gained nobody anything.

Each client's debt is told before the next question about this client that leaves this worker, and otherwise in the
background, one after the other: Redis has others to serve, and what is under way when it goes away again is little.
That may then count twice until its period ends, as it is told once more if its connection was lost. What only was not
answered in time is not: Redis will come to it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import islice
from typing import Final

from gateway.plugin import Answer, Call, Redis, RedisDown, RedisError, RedisTimeout, Script
from plugins.rate_limit.limits import Limit
from plugins.rate_limit.local import Algorithm, LocalLimits

SETTLE: Final[dict[Algorithm, Script]] = {
    "sliding_window": Script.beside(__file__, "settle_window.lua"),
    "token_bucket": Script.beside(__file__, "settle_bucket.lua"),
}
PAUSE_SECONDS: Final = 0.05
"""How often it is tried while Redis is away, and how long Redis is left alone between two rounds."""
LONGEST_PAUSE_SECONDS: Final = 1.0
"""The pause doubles up to this while nothing can be told."""
ROUND: Final = 200
"""Clients in one round."""
MAX_FAILED: Final = 5
"""After so many that cannot be told a round ends."""


class Settling:
    """The debts of one worker.

    Args:
        keys: the keys of a client.
    """

    def __init__(
        self,
        local: LocalLimits,
        algorithm: Algorithm,
        limits: Sequence[Limit],
        keys: Callable[[str], Sequence[bytes]],
    ) -> None:
        self._local = local
        self._script = SETTLE[algorithm]
        self._bucket = algorithm == "token_bucket"
        self._limits = limits
        self._keys = keys
        self._task: asyncio.Task[None] | None = None
        self._ended = False
        self._refused = False
        """Redis is there and takes no debts (out of memory): only now and then it is asked whether it does again."""

    @property
    def script(self) -> Script:
        return self._script

    def begin(self, redis: Redis) -> None:
        """See to it that all debts are told as soon as Redis is back."""
        if self._task is None and not self._ended:
            self._task = asyncio.get_running_loop().create_task(self._all(redis))

    async def stop(self) -> None:
        self._ended = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def tell_first(self, redis: Redis, who: str) -> None:
        """Send what a client owes, if he does, before a question about him."""
        # What is owed may be many numbers: they are not put together for a Redis that is away.
        if who in self._local.owing and not self._refused and redis.reaches(self._keys(who)[0]):
            self._tell(redis, who)

    def _tell(self, redis: Redis, who: str) -> Answer:
        """Send what a client owes; he owes it no longer, unless the answer says otherwise."""
        answer = redis.call(Call(self._script, self._keys(who), self._arguments(self._local.debt(who))))
        if answer.error is None:
            counts = self._local.settled(who)
            answer.then(lambda answer: self._told(redis, who, counts, answer.error))
        return answer

    def _told(self, redis: Redis, who: str, counts: Sequence[int], error: RedisError | None) -> None:
        self._refused = error is not None and not isinstance(error, RedisDown)
        if error is not None and not isinstance(error, RedisTimeout):
            self._local.owe(who, counts)
            self.begin(redis)

    async def _all(self, redis: Redis) -> None:
        owing, pause = self._local.owing, PAUSE_SECONDS
        try:
            while owing:
                await asyncio.sleep(pause)
                failed = 0
                for who in list(islice(owing, ROUND)):
                    if who not in owing:
                        continue  # a request has told it meanwhile
                    if not await self._has_told(redis, who):
                        if who in owing:
                            # Another's keys may lie on another server, which is there.
                            owing[who] = owing.pop(who)
                        failed += 1
                        if failed == MAX_FAILED:
                            break
                pause = PAUSE_SECONDS if failed < MAX_FAILED else min(2 * pause, LONGEST_PAUSE_SECONDS)
        finally:
            self._task = None

    async def _has_told(self, redis: Redis, who: str) -> bool:
        """Whether Redis knows by now."""
        if not redis.reaches(self._keys(who)[0]):
            return False
        with suppress(RedisError):
            await self._tell(redis, who)
            return True
        return False

    def _arguments(self, debts: Sequence[Sequence[int]]) -> list[int]:
        found: list[int] = []
        for limit, debt in zip(self._limits, debts, strict=True):
            found += (limit.count, limit.period, limit.capacity if self._bucket else len(debt), *debt)
        return found
