"""Where access log lines go: a bounded buffer, and an outlet that never holds up the loop.

Lines are collected and handed over every `FLUSH_SECONDS` or `FLUSH_BYTES`. When the reader stalls, what waits is
bounded: lines past the bound are dropped and counted. Lines of several workers never mix: what is written to a pipe
at once ends with a line and fits in `PIPE_BUF`.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from mypy_extensions import mypyc_attr

from gateway.observe.metrics import Counter
from gateway.observe.outlet import PIPE_BUF, open_outlet

logger = logging.getLogger("gateway.log")

FLUSH_SECONDS: Final = 0.1
FLUSH_BYTES: Final = 64 << 10
MAX_LINE: Final = PIPE_BUF


@mypyc_attr(allow_interpreted_subclasses=True)
class AccessLog:
    """Lines for a file descriptor.

    Args:
        max_buffer: bytes that may wait for a slow reader, here and in the outlet together.
        dropped: counts the lines that found no room.
        fd: where to write; standard output.
    """

    def __init__(self, max_buffer: int, dropped: Counter, fd: int = 1) -> None:
        self._loop = asyncio.get_running_loop()
        self._max_buffer = max_buffer
        self._dropped = dropped
        self._fd = fd
        self._outlet = open_outlet(fd)
        self._lines: list[bytes] = []
        self._size = 0
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<AccessLog fd {self._fd}, {self.waiting} bytes waiting, {self._dropped.value} lines dropped>"

    @property
    def waiting(self) -> int:
        """Bytes that are not written yet."""
        return self._size + self._outlet.waiting

    def write(self, line: bytes) -> None:
        """Take one line, with its newline, of at most `MAX_LINE` bytes."""
        self._lines.append(line)
        self._size += len(line)
        if self._size >= FLUSH_BYTES:
            self._hand_over()
        elif self._timer is None:
            self._timer = self._loop.call_later(FLUSH_SECONDS, self._hand_over)

    def _hand_over(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        lines, size = self._lines, self._size
        self._lines, self._size = [], 0
        outlet = self._outlet
        if outlet.broken or outlet.waiting + size > self._max_buffer:
            if not self._dropped.value:
                logger.warning(
                    "access log: the reader of standard output does not keep up: lines are dropped and counted"
                    " (gateway_access_log_dropped_total)"
                )
            self._dropped.value += len(lines)
            return
        outlet.put(lines, size)

    async def stop(self) -> None:
        """Write what is left; a stalled reader is not waited for longer than `STOP_SECONDS` of the outlet."""
        self._hand_over()
        await self._outlet.stop()
