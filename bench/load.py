"""wrk, and what one measurement with it says."""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.process import Process, cpu_seconds, machine_seconds, own_seconds
from bench.servers.upstream import SIZES

CORES: Final = sorted(os.sched_getaffinity(0))
TARGET_CORES: Final = CORES[:1]
LOAD_CORES: Final = CORES[1:] or CORES

Round = dict[str, float]
"""`rps`, `p50`, `p99` and `max` (ms), `cpu` and `redis_cpu` (µs a request), `trips` (a request), `requests`, `bad`, and
`foreign`: cores that others on this machine kept busy meanwhile."""


@dataclass(frozen=True)
class Load:
    """What wrk sends: see `load.lua` for the modes, and for what `count` is in each."""

    path: str
    mode: str = "same"
    connections: int = 64
    count: int = 100

    def run(self, port: int, seconds: int) -> dict[str, Any]:
        """What wrk counted.

        Raises:
            SystemExit: wrk failed.
        """
        command = ["wrk", "-t1", f"-c{self.connections}", f"-d{seconds}s", "--timeout", "10s"]
        command += ["-s", str(Path(__file__).parent / "load.lua"), f"http://127.0.0.1:{port}"]
        done = subprocess.run(
            [*command, "--", self.mode, self.path, str(self.count)],
            capture_output=True,
            text=True,
            timeout=seconds + 60,
            preexec_fn=lambda: os.sched_setaffinity(0, LOAD_CORES),
        )
        match = re.search(r"^JSON (.*)$", done.stdout, re.M)
        if match is None:
            raise SystemExit(f"wrk failed: {done.stdout}{done.stderr}")
        return dict(json.loads(match[1]))

    def one(self, process: Process) -> str | None:
        """One such request by hand: `X-Cache` of its answer.

        Raises:
            SystemExit: the answer is not 200, or its body has another length.
        """
        path = self.path
        if self.mode == "cold":
            path += f"?by-hand={time.time_ns()}"
        elif self.mode == "urls":
            path += "?n=0"
        elif self.mode == "routes":
            path = f"/r0{path}?n=0"
        body = b"a" * 10240 if self.mode == "post" else None
        headers = {"Host": f"127.0.0.1:{process.port}", "Authorization": "Bearer token0001"}
        if "users" not in self.mode and self.mode != "cold":
            del headers["Authorization"]
        connection = http.client.HTTPConnection("127.0.0.1", process.port, timeout=10)
        connection.request("POST" if body else "GET", path, body, headers)
        answer = connection.getresponse()
        length = len(answer.read())
        connection.close()
        if answer.status != 200 or length != SIZES[self.path.rpartition("/")[2]]:
            raise SystemExit(f"{process.name}: {path} is answered with {answer.status} and {length} bytes")
        return answer.getheader("X-Cache")


def measure(process: Process, load: Load, seconds: int, running: Sequence[Process]) -> Round:
    """One round of one target.

    Args:
        running: all that is ours and runs meanwhile; the rest is foreign.
    """
    known = [pid for other in running for pid in other.pids()]
    redis = [pid for other in running if other.name.startswith("redis") for pid in other.pids()]
    trips = process.metric("gateway_redis_round_trips_total")
    cpu, redis_cpu = process.cpu_seconds(), cpu_seconds(redis)
    begun, ours, busy = time.monotonic(), cpu_seconds(known) + own_seconds(), machine_seconds()
    result = load.run(process.port, seconds)
    took, ours, busy = time.monotonic() - begun, cpu_seconds(known) + own_seconds() - ours, machine_seconds() - busy
    cpu, redis_cpu = process.cpu_seconds() - cpu, cpu_seconds(redis) - redis_cpu
    process.must_run()
    requests = max(1, result["requests"])
    return {
        "rps": result["requests"] / result["seconds"],
        "p50": result["p50"],
        "p99": result["p99"],
        "max": result["max"],
        "cpu": cpu * 1e6 / requests,
        "redis_cpu": redis_cpu * 1e6 / requests,
        "trips": (process.metric("gateway_redis_round_trips_total") - trips) / requests,
        "requests": result["requests"],
        "bad": result["bad"],
        "foreign": max(0.0, busy - ours) / took,
    }
