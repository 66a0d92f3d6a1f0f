"""A process that is measured, by the kernel's own accounting."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import subprocess
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Final

TICKS: Final = os.sysconf("SC_CLK_TCK")


@dataclass(eq=False)
class Process:
    """Something that runs, with its children. `admin` is the port of its metrics, 0 where it has none."""

    name: str
    port: int
    popen: subprocess.Popen[bytes]
    log: Path
    admin: int = 0

    def pids(self) -> list[int]:
        """Its own and its living children's, itself first."""
        found, todo = [], [self.popen.pid]
        while todo:
            pid = todo.pop()
            found.append(pid)
            with contextlib.suppress(OSError):
                todo += [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        return found

    def cpu_seconds(self) -> float:
        """User and system time so far, of the process and its living children."""
        return cpu_seconds(self.pids())

    def resident(self, what: str = "VmRSS") -> int:
        """Resident bytes of those that do the work: the children, or itself where it has none. `VmHWM` is the peak."""
        total = 0
        for pid in self.pids()[1:] or self.pids():
            with contextlib.suppress(OSError):
                match = re.search(rf"{what}:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
                total += int(match[1]) * 1024 if match else 0
        return total

    def metric(self, name: str) -> float:
        """A metric of the gateway, over all its labels; 0 of anything else."""
        return sum(float(value) for value in re.findall(rf"^{name}(?:\{{.*\}})? (\S+)$", self._metrics(), re.M))

    def buckets(self, name: str) -> dict[float, float]:
        """A histogram of the gateway without other labels: how many observations were at most so large."""
        found = re.findall(rf'^{name}_bucket\{{le="(\S+)"\}} (\S+)$', self._metrics(), re.M)
        return {float(bound): float(count) for bound, count in found}

    def _metrics(self) -> str:
        if not self.admin:
            return ""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/_gateway/metrics", timeout=5) as answer:
            return str(answer.read().decode())

    def must_run(self) -> None:
        """Raises SystemExit, with the end of its log, if it has ended."""
        if self.popen.poll() is not None:
            raise SystemExit(f"{self.name} has ended ({self.popen.returncode}):\n{self.log.read_text()[-2000:]}")


def cpu_seconds(pids: list[int]) -> float:
    """User and system time so far of these processes."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
    return total / TICKS


def own_seconds() -> float:
    """User and system time so far of the bench itself and of its children that have ended (wrk)."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def machine_seconds() -> float:
    """Time that all cores have spent on anything: neither idle, nor waiting for a disk, nor taken by the host."""
    user, nice, system, _idle, _wait, irq, soft, *_ = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + soft) / TICKS
