"""`make bench`: what the gateway costs, each figure beside a baseline of the same run. See bench/README.md.

python -m bench [--seconds 2] [--rounds 3] [--only pass,chain] [--list]
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from bench import memory
from bench.bodies import bodies
from bench.compare import Result, run
from bench.lab import Lab, lab
from bench.report import Finding, about, cells, write
from bench.rows import SECTIONS
from bench.stalls import stalls
from bench.zipf import zipf

RESULTS: Final = Path(__file__).parent / "results"
MEMORY: Final[dict[str, Callable[[Lab], Finding]]] = {
    "RSS of mirrored answers": memory.mirrored,
    "RSS of idle connections": memory.idle,
    "hit rate of the mirror": lambda here: zipf(),
    "loop lag": stalls,
    "limits beside bodies": bodies,
}


NAMES: Final = [*[work.name for works in SECTIONS.values() for work in works], *MEMORY]


def chosen(name: str, only: str) -> bool:
    """Whether a row is wanted: it is named, or a word that is no row's whole name is a part of its name."""
    words = [word.strip() for word in only.split(",") if word.strip()]
    return not words or any(word == name if word in NAMES else word in name for word in words)


def whole(text: str) -> int:
    """A positive whole number: wrk takes no parts of a second."""
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=whole, default=2, help="of one measurement; whole ones")
    parser.add_argument("--rounds", type=whole, default=3, help="measurements of each side of a row")
    parser.add_argument("--patience", type=int, default=3, help="at most so many rounds more, for disturbed ones")
    parser.add_argument("--only", default="", help="rows with these names, or with these words in them; with commas")
    parser.add_argument("--list", action="store_true", help="names of all rows")
    parser.add_argument("--lock", type=Path, help="a file to lock while measuring, so that several runs take turns")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for bench.md and bench.json")
    options = parser.parse_args()
    rows = {title: [work for work in works if chosen(work.name, options.only)] for title, works in SECTIONS.items()}
    more = {name: find for name, find in MEMORY.items() if chosen(name, options.only)}
    if options.list:
        print("\n".join([*[work.name for works in rows.values() for work in works], *more]))
        return
    if not more and not any(rows.values()):
        raise SystemExit(f"no row has {options.only!r} in its name; --list shows them")
    # So that what was started here is ended too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    results: dict[str, list[Result]] = {title: [] for title in rows}
    findings: list[Finding] = []
    with lab(options.lock) as here:
        for title, works in rows.items():
            for work in works:
                results[title].append(run(work, here, options.seconds, options.rounds, options.patience))
                print(" | ".join(cells(results[title][-1])), file=sys.stderr, flush=True)
        for find in more.values():
            findings.append(find(here))
            print(f"{findings[-1].what}: {findings[-1].found}", file=sys.stderr, flush=True)
    print(write(options.results, results, findings, about(options.seconds, options.rounds)))
    print(f"{options.results}/bench.md and bench.json")


if __name__ == "__main__":
    main()
