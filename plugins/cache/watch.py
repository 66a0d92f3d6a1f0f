"""Waiting for another worker's fetch: until Redis pushes that the entry or its lock has changed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final

from gateway.plugin import Answer

# Without a mirror nothing is pushed: locks are looked at again after this.
LOOK_SECONDS: Final = 0.03
# Nor would a Redis push anything that does not answer: while somebody waits it is asked for a sign of life this often.
PROBE_SECONDS: Final = 0.25


class Watch:
    """Changes of an entry or its lock. A context manager: afterwards nothing is watched any more.

    Args:
        probe: asks the server of the entry for a sign of life.
    """

    __slots__ = ("_futures", "_probe")

    def __init__(self, futures: Sequence[asyncio.Future[None]], probe: Callable[[], Answer]) -> None:
        self._futures = futures
        self._probe = probe

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for future in self._futures:
            future.cancel()

    async def wait(self, timeout: float) -> bool:
        """Wait for a change, at most this many seconds; whether it is worth looking again before taking the lock.

        Raises:
            RedisDown: Redis does not answer any more.
        """
        if not self._futures:
            await asyncio.sleep(min(timeout, LOOK_SECONDS))
            return False
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        probe: Answer | None = None
        while (left := deadline - loop.time()) > 0:
            # The reply is not waited for: whether it came in time is seen the next time round.
            if probe is None or probe.ready:
                probe = self._probe()
            done, _ = await asyncio.wait(
                self._futures, timeout=min(left, PROBE_SECONDS), return_when=asyncio.FIRST_COMPLETED
            )
            if done:
                return True
            if probe.error is not None:
                raise probe.error
        return False
