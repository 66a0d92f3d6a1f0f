"""Results as Markdown and JSON."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bench.compare import DISTURBED, Result, median
from bench.rows import Contract
from gateway import translated

HEAD: Final = ("work", "req/s", "p50 ms", "p99 ms", "CPU µs", "trips", "baseline", "its req/s", "its p99", "its CPU µs")
HEAD_MORE: Final = ("req/s ÷", "CPU ÷", "contract", "remarks")


@dataclass(frozen=True)
class Finding:
    """A figure that is not a rate: memory, a share of hits, or how long the loop was held up."""

    what: str
    found: str
    met: bool | None = None
    contract: str = ""
    figures: dict[str, float] = field(default_factory=dict)


def verdict(met: bool | None, contract: str) -> str:
    """`met (≥ 2.7 times)`; nothing where there is no contract."""
    return "" if met is None else f"{'met' if met else 'NOT met'} ({contract})"


def wanted(contract: Contract) -> str:
    """A row's contract in words."""
    parts = []
    if contract.ratio is not None:
        parts.append(f"≥ {contract.ratio:g} times")
    if contract.trips is not None:
        parts.append(f"≤ {contract.trips:g} trips")
    if contract.tail is not None:
        parts.append(f"p99 < {contract.tail:g} p50")
    return ", ".join(parts)


def cells(result: Result) -> list[str]:
    """A row of the table."""
    ours, theirs = median(result.gateway), median(result.baseline)
    remarks = []
    if result.bad:
        remarks.append(f"{result.bad:.0f} bad answers")
    if result.disturbed:
        remarks.append(f"{result.disturbed} of {len(result.gateway) * 2} disturbed")
    if result.work.contract.tail is not None:
        remarks.append(f"p99 ÷ p50 {ours['p99'] / ours['p50']:.2f}")
    return [
        result.work.name,
        f"{ours['rps']:.0f}",
        f"{ours['p50']:.2f}",
        f"{ours['p99']:.2f}",
        f"{ours['cpu']:.1f}",
        f"{ours['trips']:.2f}",
        result.beside,
        f"{theirs['rps']:.0f}",
        f"{theirs['p99']:.2f}",
        f"{theirs['cpu']:.1f}",
        f"{result.ratio('rps'):.2f}",
        f"{result.ratio('cpu'):.2f}",
        verdict(result.met(), wanted(result.work.contract) + (", by CPU" if result.by_cpu else "")),
        ", ".join(remarks),
    ]


def table(rows: Sequence[Sequence[str]]) -> str:
    """Markdown; the first row is the head."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def markdown(sections: Mapping[str, Sequence[Result]], findings: Sequence[Finding], about: Mapping[str, Any]) -> str:
    """The whole report."""
    parts = [", ".join(f"{name} {value}" for name, value in about.items())]
    for title, results in sections.items():
        if results:
            parts.append(f"### {title}\n\n" + table([[*HEAD, *HEAD_MORE], *map(cells, results)]))
    if findings:
        rows = [[one.what, one.found, verdict(one.met, one.contract)] for one in findings]
        parts.append("### Memory and stalls\n\n" + table([["what", "found", "contract"], *rows]))
    every = [measured for results in sections.values() for one in results for measured in one.gateway + one.baseline]
    if every:
        disturbed = sum(measured["foreign"] > DISTURBED for measured in every)
        parts.append(f"{disturbed} of {len(every)} measurements were disturbed by other work on the machine.")
    return "\n\n".join(parts) + "\n"


def about(seconds: int, rounds: int) -> dict[str, Any]:
    """Under which circumstances this was measured."""
    folder = Path(__file__).parent
    said = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=folder, capture_output=True, text=True, check=False
    )
    return {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "commit": said.stdout.strip() or "unknown",
        "Python": platform.python_version(),
        "hot path": "in C" if translated() else "plain Python",
        "cores": len(os.sched_getaffinity(0)),
        "CPU": _cpu(),
        "rounds": rounds,
        "seconds": seconds,
    }


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def write(
    folder: Path, sections: Mapping[str, Sequence[Result]], findings: Sequence[Finding], about: dict[str, Any]
) -> str:
    """Write `bench.md` and `bench.json`; the Markdown."""
    folder.mkdir(exist_ok=True)
    text = markdown(sections, findings, about)
    (folder / "bench.md").write_text(text)
    rows = {title: [one.as_json() for one in results] for title, results in sections.items()}
    memory = [{"what": one.what, "met": one.met, "found": one.found, **one.figures} for one in findings]
    (folder / "bench.json").write_text(json.dumps({"about": about, "sections": rows, "memory": memory}, indent=1))
    return text
