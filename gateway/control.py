"""The channel between the parent and a worker: a socket pair with one JSON object per line.

    parent -> worker    {"do": "start", "config", "folder", "source", "node", "number", "sockets"}   once, first
                        {"do": "snapshot"}
                        {"do": "drain"}                 finish what is in flight, then end
    worker -> parent    {"ready": true}                 connections are accepted
                        {"failed": text}                it cannot start, and ends
                        {"snapshot": {...}}             one for each that was asked for, and a last one at the end

The configuration travels here and not in arguments, which other users of the machine can read. The end of the channel
tells each side that the other is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import orjson

import gateway

MAX_MESSAGE: Final = 16 << 20
"""Bytes. A snapshot with all series that `observe.metrics` allows stays far below."""
LINGER_SECONDS: Final = 1.0

Message = dict[str, Any]


class Channel:
    """One end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def over(cls, connected: socket.socket) -> Channel:
        """Take over one socket of the pair."""
        return cls(*await asyncio.open_unix_connection(sock=connected, limit=MAX_MESSAGE))

    def send(self, message: Message) -> None:
        """Send without waiting; a side that has stopped reading is cut off when too much waits for it."""
        if self._writer.is_closing():
            return
        self._writer.write(orjson.dumps(message) + b"\n")
        if self._writer.transport.get_write_buffer_size() > 2 * MAX_MESSAGE:
            self._writer.transport.abort()

    async def receive(self) -> Message | None:
        """The next message; None at the end, which a message that is too long or no JSON object is too."""
        try:
            line = await self._reader.readline()
            message = orjson.loads(line) if line.endswith(b"\n") else None
        except (OSError, ValueError):
            return None
        return message if isinstance(message, dict) else None

    async def close(self) -> None:
        """Send what is left and close."""
        self._writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            await asyncio.wait_for(self._writer.wait_closed(), LINGER_SECONDS)


class WorkerProcess:
    """The parent's hold on one worker process."""

    def __init__(self, process: asyncio.subprocess.Process, channel: Channel, number: int) -> None:
        self.number = number
        self.pid = process.pid
        self.ready = False
        self.draining = False
        self.failure = ""
        """What the worker said was in its way."""
        self.snapshot: Message | None = None
        """The last one it sent."""
        self._process = process
        self._channel = channel
        loop = asyncio.get_running_loop()
        self._started: asyncio.Future[bool] = loop.create_future()
        self._asked: asyncio.Future[None] | None = None
        self._listening = loop.create_task(self._listen())

    def __repr__(self) -> str:
        state = "draining" if self.draining else "ready" if self.ready else "starting"
        return f"<WorkerProcess {self.number} pid {self.pid} {state}>"

    @classmethod
    async def spawn(cls, number: int, listening: socket.socket, start: Message) -> WorkerProcess:
        """A fresh process: nothing of the parent's loop and threads is inherited, as it would be by a fork.

        Raises:
            OSError: no process can be made.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                process = await asyncio.create_subprocess_exec(
                    # -P: the working directory may have modules of our names.
                    sys.executable,
                    "-P",
                    "-m",
                    "gateway.worker_main",
                    str(theirs.fileno()),
                    stdin=subprocess.DEVNULL,
                    env=environment(),
                    pass_fds=(theirs.fileno(), listening.fileno()),
                    # Ctrl-C goes to the whole foreground group, but when to end is the parent's decision.
                    start_new_session=True,
                )
            except BaseException:
                ours.close()
                raise
        channel = await Channel.over(ours)
        channel.send({**start, "do": "start", "number": number, "sockets": [listening.fileno()]})
        return cls(process, channel, number)

    async def started(self, timeout: float) -> bool:
        """Whether it has become ready within so many seconds; if not, `failure` says why."""
        try:
            return await asyncio.wait_for(asyncio.shield(self._started), timeout)
        except TimeoutError:
            self.failure = f"not ready within {timeout:g} s"
            return False

    async def ask_snapshot(self, timeout: float) -> bool:
        """Have `snapshot` renewed; False if the worker did not answer in time."""
        if self._asked is None:
            self._asked = asyncio.get_running_loop().create_future()
            self._channel.send({"do": "snapshot"})
        # All who ask meanwhile share the answer; one that is late still counts for the next.
        done, _ = await asyncio.wait({self._asked}, timeout=timeout)
        return bool(done) and self.ready

    def drain(self) -> None:
        """Have it finish what is in flight, and end."""
        self.draining = True
        self._channel.send({"do": "drain"})

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def wait(self) -> str:
        """How the process ended, in words; `snapshot` is its last one then."""
        code = await self._process.wait()
        # Its last words may still be on the way.
        await asyncio.wait({self._listening}, timeout=LINGER_SECONDS)
        self._listening.cancel()
        await self._channel.close()
        return f"exit code {code}" if code >= 0 else f"killed by {signal_name(-code)}"

    async def _listen(self) -> None:
        try:
            while (message := await self._channel.receive()) is not None:
                self._take(message)
        finally:
            self.ready = False
            if not self._started.done():
                self._started.set_result(False)
            if self._asked is not None:
                self._asked.cancel()

    def _take(self, message: Message) -> None:
        if "snapshot" in message:
            self.snapshot = message["snapshot"]
            if self._asked is not None:
                self._asked.set_result(None)
                self._asked = None
        elif "failed" in message:
            self.failure = str(message["failed"])
        elif message.get("ready"):
            self.ready = True
            if not self._started.done():
                self._started.set_result(True)


def environment() -> dict[str, str]:
    """Ours, and where this package lies: a worker is started without the working directory on its path."""
    root = Path(gateway.__file__).resolve().parent.parent
    found = dict(os.environ)
    if root.name not in ("site-packages", "dist-packages"):
        found["PYTHONPATH"] = os.pathsep.join(filter(None, (str(root), found.get("PYTHONPATH"))))
    return found


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
