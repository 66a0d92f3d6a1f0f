"""One row: target and baseline in turn, round by round."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from bench.lab import Lab
from bench.load import Load, Round, measure
from bench.process import Process
from bench.rows import Gateway, Work

DISTURBED: Final = 0.15
"""Of a core. What others take beyond it makes a round doubtful, as one of the two cores is ours in name only."""


@dataclass
class Result:
    """A row's rounds; the n-th of both sides belong together."""

    work: Work
    gateway: list[Round] = field(default_factory=list)
    baseline: list[Round] = field(default_factory=list)
    dropped: list[tuple[Round, Round]] = field(default_factory=list)
    """Disturbed ones that better ones have taken the place of."""

    def keep(self, number: int) -> None:
        """Drop all but the rounds that were disturbed least."""
        pairs = sorted(zip(self.gateway, self.baseline, strict=True), key=foreign)
        self.gateway = [ours for ours, _ in pairs[:number]]
        self.baseline = [theirs for _, theirs in pairs[:number]]
        self.dropped += pairs[number:]

    @property
    def beside(self) -> str:
        """What the baseline is called."""
        return self.work.baseline.name if isinstance(self.work.baseline, Gateway) else self.work.baseline

    def ratio(self, figure: str) -> float:
        """The gateway's figure over the baseline's, inside each round; the median of the rounds."""
        pairs = zip(self.gateway, self.baseline, strict=True)
        return statistics.median(ours[figure] / max(theirs[figure], 1e-9) for ours, theirs in pairs)

    @property
    def bad(self) -> float:
        """Answers that were errors, and requests that got none."""
        return sum(measured["bad"] for measured in self.gateway + self.baseline)

    @property
    def disturbed(self) -> int:
        """How many of the measurements were."""
        return sum(measured["foreign"] > DISTURBED for measured in self.gateway + self.baseline)

    @property
    def by_cpu(self) -> bool:
        """Whether the ratio that is asked for is there by CPU per request, and not by requests a second."""
        wanted = self.work.contract.ratio
        return wanted is not None and self.ratio("rps") < wanted and self.ratio("cpu") * wanted <= 1

    def met(self) -> bool | None:
        """Whether the contract is; None where there is none."""
        contract, ours = self.work.contract, median(self.gateway)
        held = []
        if contract.ratio is not None:
            held.append(self.ratio("rps") >= contract.ratio or self.by_cpu)
        if contract.trips is not None:
            # Of thousands of requests a few read again what has just been withdrawn.
            held.append(round(ours["trips"], 2) <= contract.trips)
        if contract.tail is not None:
            held.append(ours["p99"] < contract.tail * ours["p50"])
        return (all(held) and not self.bad) if held else None

    def as_json(self) -> dict[str, Any]:
        """Medians and all rounds."""
        return {
            "work": self.work.name,
            "baseline": self.beside,
            "rps_ratio": self.ratio("rps"),
            "cpu_ratio": self.ratio("cpu"),
            "met": self.met(),
            "disturbed": self.disturbed,
            "gateway": median(self.gateway),
            "against": median(self.baseline),
            "rounds": {"gateway": self.gateway, "baseline": self.baseline, "dropped": self.dropped},
        }


def foreign(pair: tuple[Round, Round]) -> float:
    """How much a round was disturbed: cores, at its worse half."""
    return max(measured["foreign"] for measured in pair)


def median(rounds: list[Round]) -> Round:
    """Each figure's median."""
    return {figure: statistics.median(measured[figure] for measured in rounds) for figure in rounds[0]}


def run(
    work: Work,
    here: Lab,
    seconds: int,
    rounds: int,
    patience: int = 0,
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
) -> Result:
    """Measure a row.

    Args:
        seconds: of one measurement.
        patience: at most so many rounds more, in place of disturbed ones.
        say: is told of each disturbed round.

    Raises:
        SystemExit: a server does not start, or does not answer as the row says.
    """
    here.clear()
    sides: list[tuple[Process, Load]] = [
        (here.target(work.gateway), work.load),
        (here.target(work.baseline), work.baseline_load or work.load),
    ]
    with here.alone():
        for process, load in sides:
            load.run(process.port, work.warm_seconds)
            found = load.one(process)
            if work.cache and process is sides[0][0] and found != work.cache:
                raise SystemExit(f"{work.name}: X-Cache is {found}, not {work.cache}")
        result, quiet = Result(work), 0
        for number in range(rounds + patience):
            turn = sides if number % 2 else sides[::-1]
            measured = [measure(process, load, seconds, here.processes) for process, load in turn]
            ours, theirs = measured if number % 2 else measured[::-1]
            result.gateway.append(ours)
            result.baseline.append(theirs)
            if (most := foreign((ours, theirs))) > DISTURBED:
                say(f"  disturbed: {work.name}, round {number + 1}: {most:.2f} of a core went elsewhere")
            else:
                quiet += 1
            if quiet == rounds:
                break
    result.keep(rounds)
    return result
