"""`make bench`: what the gateway costs, each figure beside a baseline of the same interleaved run.

    python -m bench [--seconds 3] [--rounds 3] [--only pass,chain]

Every round measures each target once, in a turning order; a ratio is taken inside a round, and the median of the rounds
is shown. The target has a core to itself; Redis, the upstream and wrk share the other one.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.lab import HERE, Lab, Load, Process, lab, measure


@dataclass(frozen=True)
class Work:
    """One row: what the gateway does, and what it is held against."""

    name: str
    gateway: str
    load: Load
    baseline: str
    baseline_load: Load | None = None
    must: float | None = None
    """The performance contract: at least so many times the baseline's requests per second."""


CONSTANT: Final = Load("/1k")
WORK: Final = (
    Work("pass-through 1 KB", "on", Load("/pass/1k"), "tutorial", must=2.7),
    Work("pass-through 100 KB", "on", Load("/pass/100k"), "tutorial"),
    Work("stream 10 MB", "on", Load("/pass/10m", connections=8), "tutorial"),
    Work("POST 10 KB", "on", Load("/pass/1k", "post"), "tutorial"),
    Work("memory hit 1 KB", "on", Load("/cached/1k"), "constant", CONSTANT, must=1.5),
    Work("memory hit 100 KB", "on", Load("/cached/100k"), "constant", Load("/100k")),
    Work("Redis hit 1 KB", "off", Load("/cached/1k"), "constant", CONSTANT),
    Work("limit only", "on", Load("/limited/1k"), "tutorial"),
    Work("chain, cold", "on", Load("/chain/1k", "cold"), "tutorial", Load("/pass/1k")),
    Work("chain, mirror off", "off", Load("/chain/1k", "users"), "constant", CONSTANT, must=0.9),
    Work("chain, mirror on", "on", Load("/chain/1k", "users"), "constant", CONSTANT, must=1.1),
    Work("chain against the usual way", "on", Load("/chain/1k", "users"), "usual chain"),
    Work("pass-through, 1 connection", "on", Load("/pass/1k", connections=1), "tutorial"),
    Work("pass-through, 512 connections", "on", Load("/pass/1k", connections=512), "tutorial"),
    Work("chain, 1 connection", "on", Load("/chain/1k", "users", 1), "constant", Load("/1k", connections=1)),
    Work("chain, 512 connections", "on", Load("/chain/1k", "users", 512), "constant", Load("/1k", connections=512)),
    Work("chain, 2 workers", "two", Load("/chain/1k", "users"), "on", Load("/chain/1k", "users")),
)
WARM_SECONDS: Final = 1.0


def start(here: Lab, name: str) -> Process:
    """A target by its name in the rows."""
    if name in ("on", "off", "two"):
        return here.gateway(f"gateway {name}", mirror=name != "off", workers=2 if name == "two" else 1)
    return {"constant": here.constant, "tutorial": here.tutorial, "usual chain": here.usual_chain}[name]()


def run(work: Work, here: Lab, seconds: float, rounds: int) -> dict[str, object]:
    """All rounds of one row."""
    pair = {"gateway": (start(here, work.gateway), work.load)}
    pair["baseline"] = (start(here, work.baseline), work.baseline_load or work.load)
    found: dict[str, list[dict[str, float]]] = {"gateway": [], "baseline": []}
    try:
        for process, load in pair.values():
            load.run(process.port, WARM_SECONDS)
        for number in range(rounds):
            names = list(pair) if number % 2 else list(reversed(pair))
            for name in names:
                process, load = pair[name]
                found[name].append(measure(process, load, seconds))
    finally:
        for process, _ in pair.values():
            here.end(process)

    def median(name: str, figure: str) -> float:
        return statistics.median(measured[figure] for measured in found[name])

    pairs = list(zip(found["gateway"], found["baseline"], strict=True))
    ratio = statistics.median(ours["rps"] / theirs["rps"] for ours, theirs in pairs)
    return {
        "work": work.name,
        "baseline": work.baseline,
        "ratio": ratio,
        "cpu_ratio": statistics.median(ours["cpu"] / theirs["cpu"] for ours, theirs in pairs),
        "must": work.must,
        "gateway": {figure: median("gateway", figure) for figure in ("rps", "p50", "p99", "cpu", "trips", "bad")},
        "against": {figure: median("baseline", figure) for figure in ("rps", "p50", "p99", "cpu", "bad")},
        "rounds": found,
    }


HEAD: Final = ("work", "req/s", "p50 ms", "p99 ms", "CPU µs", "trips", "bad", "baseline", "its req/s", "its CPU µs")
HEAD_RATIOS: Final = ("req/s ÷", "CPU ÷", "contract")


def row(result: dict[str, object]) -> list[str]:
    """A result as table cells."""
    ours: dict[str, float] = result["gateway"]  # type: ignore[assignment]
    theirs: dict[str, float] = result["against"]  # type: ignore[assignment]
    must, ratio = result["must"], float(str(result["ratio"]))
    contract = "" if must is None else f"{'met' if ratio >= float(str(must)) else 'NOT met'} (≥ {must})"
    cells = [
        str(result["work"]),
        f"{ours['rps']:.0f}",
        f"{ours['p50']:.2f}",
        f"{ours['p99']:.2f}",
        f"{ours['cpu']:.1f}",
    ]
    cells += [f"{ours['trips']:.2f}", f"{ours['bad']:.0f}", str(result["baseline"]), f"{theirs['rps']:.0f}"]
    return [*cells, f"{theirs['cpu']:.1f}", f"{ratio:.2f}", f"{float(str(result['cpu_ratio'])):.2f}", contract]


def markdown(results: list[dict[str, object]]) -> str:
    """The table."""
    rows = [[*HEAD, *HEAD_RATIOS], ["---"] * (len(HEAD) + len(HEAD_RATIOS)), *map(row, results)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="of one measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="rows whose name has one of these words, with commas")
    options = parser.parse_args()
    words = [word for word in options.only.split(",") if word]
    chosen = [work for work in WORK if not words or any(word in work.name for word in words)]
    results = []
    with lab() as here:
        for work in chosen:
            results.append(run(work, here, options.seconds, options.rounds))
            print(" | ".join(row(results[-1])), file=sys.stderr, flush=True)
    folder = HERE / "results"
    folder.mkdir(exist_ok=True)
    table = markdown(results)
    machine = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    (folder / "bench.md").write_text(table + "\n")
    report = {"when": time.strftime("%Y-%m-%dT%H:%M:%S"), "machine": machine, "results": results}
    (folder / "bench.json").write_text(json.dumps(report, indent=1) + "\n")
    print(table)
    print(
        f"\nmedians of {options.rounds} rounds of {options.seconds:g} s; {machine}; {Path(folder)}/bench.md and .json"
    )


if __name__ == "__main__":
    main()
