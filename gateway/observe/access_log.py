"""Where access log lines go: a bounded buffer, and a thread that writes it out.

The loop never waits for standard output. It collects lines and hands them over every `FLUSH_SECONDS` or `FLUSH_BYTES`;
a thread writes them. When the reader stalls, what waits is bounded: lines past the bound are dropped and counted.
Lines of several workers never mix: what is written to a pipe at once ends with a line and fits in `PIPE_BUF`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import select
import stat
import threading
from collections.abc import Iterator
from typing import Final

from gateway.observe.metrics import Counter

logger = logging.getLogger("gateway.log")

FLUSH_SECONDS: Final = 0.1
FLUSH_BYTES: Final = 64 << 10
# POSIX: a write of up to PIPE_BUF bytes to a pipe is atomic; it is 4096 on Linux. For a file, one write call is
# atomic whatever its size, so there fewer are made.
PIPE_BUF: Final = 4096
MAX_LINE: Final = PIPE_BUF
STOP_SECONDS: Final = 2.0


class AccessLog:
    """Lines for a file descriptor.

    Args:
        max_buffer: bytes that may wait for a slow reader, in the buffer and in the thread together.
        dropped: counts the lines that found no room.
        fd: where to write; standard output.
    """

    def __init__(self, max_buffer: int, dropped: Counter, fd: int = 1) -> None:
        self._loop = asyncio.get_running_loop()
        self._max_buffer = max_buffer
        self._dropped = dropped
        self._fd = fd
        self._lines: list[bytes] = []
        self._size = 0
        self._handed = 0  # bytes; only the loop changes it
        self._done = 0  # bytes; only the thread changes it
        self._broken = False
        self._timer: asyncio.TimerHandle | None = None
        # Bounded by `max_buffer`: what is handed over and not done.
        self._queue: queue.SimpleQueue[list[bytes] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="access-log", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"<AccessLog fd {self._fd}, {self.waiting} bytes waiting, {self._dropped.value} lines dropped>"

    @property
    def waiting(self) -> int:
        """Bytes that are not written yet."""
        return self._size + self._handed - self._done

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
        if self._broken or self._handed - self._done + size > self._max_buffer:
            if not self._dropped.value:
                logger.warning(
                    "access log: the reader of standard output does not keep up: lines are dropped and counted"
                    " (gateway_access_log_dropped_total)"
                )
            self._dropped.value += len(lines)
            return
        self._handed += size
        self._queue.put(lines)

    async def stop(self) -> None:
        """Write what is left; a stalled reader is not waited for longer than `STOP_SECONDS`."""
        self._hand_over()
        self._queue.put(None)
        await self._loop.run_in_executor(None, self._thread.join, STOP_SECONDS)

    # -- in the thread -----------------------------------------------------------------------------

    def _run(self) -> None:
        limit = FLUSH_BYTES if _writes_are_atomic(self._fd) else PIPE_BUF
        while (lines := self._queue.get()) is not None:
            for piece in pieces(lines, limit):
                if not self._broken:
                    self._write(piece)
                self._done += len(piece)

    def _write(self, piece: bytes) -> None:
        while piece:
            try:
                piece = piece[os.write(self._fd, piece) :]
            except BlockingIOError:
                # Whoever shares this descriptor has made it non-blocking.
                select.select([], [self._fd], [])
            except OSError as error:
                self._broken = True
                logger.error("access log: cannot write to standard output: %s; it stays off", error)
                return


def _writes_are_atomic(fd: int) -> bool:
    """Whether writes of other processes never land inside a long one: regular files and terminals, not pipes."""
    try:
        mode = os.fstat(fd).st_mode
    except OSError:
        return False
    return stat.S_ISREG(mode) or stat.S_ISCHR(mode)


def pieces(lines: list[bytes], limit: int) -> Iterator[bytes]:
    """The lines joined into pieces of at most `limit` bytes, each of whole lines."""
    start = size = 0
    for number, line in enumerate(lines):
        if size and size + len(line) > limit:
            yield b"".join(lines[start:number])
            start, size = number, 0
        size += len(line)
    if size:
        yield b"".join(lines[start:])
