"""`make chaos`: what clients notice while something happens to Redis. See docs/reliability.md.

python -m tests.chaos [--only single,killed] [--hold 5] [--into PAGE] [--list]
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Awaitable
from pathlib import Path

import uvloop

from tests.chaos.findings import Findings
from tests.chaos.report import Line, cells, markdown, replace_table, write
from tests.chaos.scenarios import SCENARIOS, Scenario
from tests.chaos.stage import Pace, Unsupported


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="tests.chaos", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", default="", help="scenarios with one of these words in their titles; with commas")
    parser.add_argument("--hold", type=float, default=5.0, help="seconds for which something that lasts lasts")
    parser.add_argument("--list", action="store_true", help="titles of all scenarios")
    parser.add_argument("--json", type=Path, default=Path("build/chaos.json"), help="where to write the findings")
    parser.add_argument("--into", type=Path, help="a page whose table is to be replaced, such as docs/reliability.md")
    options = parser.parse_args()
    words = [word.strip() for word in options.only.split(",") if word.strip()]
    chosen = [one for one in SCENARIOS if not words or any(word in one.title for word in words)]
    if not chosen:
        raise SystemExit(f"no scenario has {options.only!r} in its title; --list shows them")
    if options.list:
        print("\n".join(one.title for one in chosen))
        return
    lines: list[Line] = []
    for one in chosen:
        lines.append((one.title, played(one, Pace(hold=options.hold))))
        print(" | ".join(cells(lines[-1])), file=sys.stderr, flush=True)
    write(options.json, lines)
    if options.into:
        replace_table(options.into, lines)
    print(f"{markdown(lines)}\n\n{options.json}")


def played(scenario: Scenario, pace: Pace) -> Findings | str:
    try:
        return uvloop.run(cleaned_up(scenario.run(pace)))
    except Unsupported as why:
        return str(why)


async def cleaned_up(play: Awaitable[Findings]) -> Findings:
    """Whoever is told to end does not leave servers behind."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await play


if __name__ == "__main__":
    main()
