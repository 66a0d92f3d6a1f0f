"""When Redis is back it is told of what passed without it, so that going around it has gained nobody anything.

Each client's debt is told before the next question about this client that leaves this worker, and otherwise in the
background. One that is sent in the moment in which Redis goes away again is told once more: then it may count twice
until its period ends, which is better than not at all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Final

from gateway.plugin import Answer, Call, Redis, RedisDown, Script
from plugins.rate_limit.limits import Limit
from plugins.rate_limit.local import Algorithm, LocalLimits

SETTLE: Final[dict[Algorithm, Script]] = {
    "sliding_window": Script.beside(__file__, "settle_window.lua"),
    "token_bucket": Script.beside(__file__, "settle_bucket.lua"),
}
PAUSE_SECONDS: Final = 0.05
"""How often it is tried while Redis is away, and how long Redis is left alone between two rounds."""
AT_ONCE: Final = 200
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

    def tell(self, redis: Redis, who: str) -> bool:
        """Send what a client owes; False where nothing can be sent."""
        answer = redis.call(Call(self._script, self._keys(who), self._arguments(self._local.debt(who))))
        if answer.error is not None:
            return False
        counts = self._local.settled(who)

        def told(answer: Answer) -> None:
            if isinstance(answer.error, RedisDown):
                self._local.owe(who, counts)
                self.begin(redis)

        answer.then(told)
        return True

    async def _all(self, redis: Redis) -> None:
        owing = self._local.owing
        try:
            while owing:
                await asyncio.sleep(PAUSE_SECONDS)
                failed = 0
                for who in list(islice(owing, AT_ONCE)):
                    if not self.tell(redis, who):
                        # Another's keys may lie on another server, which is there.
                        owing[who] = owing.pop(who)
                        failed += 1
                        if failed == MAX_FAILED:
                            break
        finally:
            self._task = None

    def _arguments(self, debts: Sequence[Sequence[int]]) -> list[int]:
        found: list[int] = []
        for limit, debt in zip(self._limits, debts, strict=True):
            found += (limit.count, limit.period, limit.capacity if self._bucket else len(debt), *debt)
        return found
