"""Bytes to a descriptor without the loop ever waiting for who reads them.

A file takes what it is given, as for every server that logs to files. A pipe or terminal is opened once more,
non-blocking: a flag of our own, that who shares the descriptor does not see. Where that is not permitted (a pipe of
another user, a socket), a thread writes and waits. It costs more: each of its writes contends with the loop for the
interpreter (measured: 3 µs per request).
"""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import select
import stat
import threading
from collections import deque
from collections.abc import Iterator
from typing import Final

logger = logging.getLogger("gateway.log")

# POSIX: a write of up to PIPE_BUF bytes to a pipe is atomic; it is 4096 on Linux. For a file, one write call is
# atomic whatever its size, so there fewer are made.
PIPE_BUF: Final = 4096
FILE_PIECE: Final = 64 << 10
STOP_SECONDS: Final = 2.0


class Outlet:
    """Takes lines for a descriptor.

    Attributes:
        waiting: bytes that are not written yet.
        broken: it cannot be written to any more.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._limit = FILE_PIECE if writes_are_atomic(fd) else PIPE_BUF
        self.broken = False

    @property
    def waiting(self) -> int:
        raise NotImplementedError

    def put(self, lines: list[bytes], size: int) -> None:
        """Write these lines, of `size` bytes, now or as soon as possible; a piece of them is never cut in a line."""
        raise NotImplementedError

    async def stop(self) -> None:
        """Write what is left; a stalled reader is not waited for longer than `STOP_SECONDS`."""
        raise NotImplementedError

    def _break(self, error: OSError) -> None:
        self.broken = True
        logger.error("access log: cannot write to standard output: %s; it stays off", error)


class DirectOutlet(Outlet):
    """Written to by the loop itself.

    Args:
        fd: does not block, or is a file.
        own: to be closed at the end.
    """

    def __init__(self, fd: int, *, own: bool) -> None:
        super().__init__(fd)
        self._own = own
        self._loop = asyncio.get_running_loop()
        self._pieces: deque[bytes] = deque()
        self._waiting = 0
        self._blocked = False

    @property
    def waiting(self) -> int:
        return self._waiting

    def put(self, lines: list[bytes], size: int) -> None:
        self._pieces.extend(pieces(lines, self._limit))
        self._waiting += size
        if not self._blocked:
            self._write()

    def _write(self) -> None:
        waiting = self._pieces
        try:
            while waiting:
                written = os.write(self._fd, waiting[0])
                self._waiting -= written
                if written < len(waiting[0]):
                    waiting[0] = waiting[0][written:]
                else:
                    waiting.popleft()
        except BlockingIOError:
            if not self._blocked:
                self._blocked = True
                self._loop.add_writer(self._fd, self._write)
            return
        except OSError as error:
            waiting.clear()
            self._waiting = 0
            self._break(error)
        if self._blocked:
            self._blocked = False
            self._loop.remove_writer(self._fd)

    async def stop(self) -> None:
        deadline = self._loop.time() + STOP_SECONDS
        while self._pieces and self._loop.time() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        if self._blocked:
            self._loop.remove_writer(self._fd)
        if self._own:
            os.close(self._fd)


class ThreadOutlet(Outlet):
    """Written to by a thread, which may block."""

    def __init__(self, fd: int) -> None:
        super().__init__(fd)
        self._handed = 0  # bytes; only the loop changes it
        self._done = 0  # bytes; only the thread changes it
        # Bounded by who puts: it looks at `waiting`.
        self._queue: queue.SimpleQueue[list[bytes] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="access-log", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        return self._handed - self._done

    def put(self, lines: list[bytes], size: int) -> None:
        self._handed += size
        self._queue.put(lines)

    async def stop(self) -> None:
        self._queue.put(None)
        await asyncio.get_running_loop().run_in_executor(None, self._thread.join, STOP_SECONDS)

    def _run(self) -> None:
        while (lines := self._queue.get()) is not None:
            for piece in pieces(lines, self._limit):
                if not self.broken:
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
                self._break(error)
                return


def open_outlet(fd: int) -> Outlet:
    """The cheapest way to write to a descriptor that cannot hold up the loop."""
    try:
        if stat.S_ISREG(os.fstat(fd).st_mode):
            return DirectOutlet(fd, own=False)
        return DirectOutlet(os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY), own=True)
    except OSError:
        return ThreadOutlet(fd)


def writes_are_atomic(fd: int) -> bool:
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
