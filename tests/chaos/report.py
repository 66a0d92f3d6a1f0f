"""The table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.chaos.findings import Findings

COLUMNS = (
    "what happens",
    "requests",
    "5xx, nothing refuses",
    "5xx, refuse",
    "blamed",
    "slowest ms (p99)",
    "decided without Redis",
    "over limit",
    "foreign",
    "over age",
    "old version ms",
    "revoked let in ms",
    "normal after s",
    "log lines",
)

MAX_LOG = 100
BEGIN, END = "<!-- make chaos -->", "<!-- end -->"
Line = tuple[str, Findings | str]
"""A scenario's title, and what was found; or why it was not played."""


def cells(line: Line) -> list[str]:
    title, found = line
    if isinstance(found, str):
        return [title, f"skipped: {found}", *[""] * (len(COLUMNS) - 2)]
    return [
        title,
        str(found.requests),
        str(found.open_5xx),
        str(found.strict_5xx),
        str(found.blamed),
        f"{found.slowest * 1000:.0f} ({found.p99 * 1000:.0f})",
        str(found.without_redis),
        str(found.overshoot),
        str(found.foreign),
        str(found.overaged),
        f"{found.old_version * 1000:.0f}",
        f"{found.revoked_accepted * 1000:.0f}",
        f"{'not within ' if found.still_wrong else ''}{found.normal_after:.1f}",
        str(len(found.log)),
    ]


def markdown(lines: Sequence[Line]) -> str:
    rows = [COLUMNS, ["---"] * len(COLUMNS), *map(cells, lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def replace_table(page: Path, lines: Sequence[Line]) -> None:
    """Put the table between the two marks of a page.

    Raises:
        ValueError: it has none.
    """
    before, _, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"{page}: expected {BEGIN} and {END}")
    page.write_text(f"{before}{BEGIN}\n\n{markdown(lines)}\n\n{END}{after}")


def write(path: Path, lines: Sequence[Line]) -> None:
    """The same as JSON, and all that the table leaves out."""
    found = {title: found if isinstance(found, str) else _shortened(found) for title, found in lines}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=2) + "\n")


def _shortened(found: Findings) -> dict[str, Any]:
    return {**asdict(found), "log": found.log[:MAX_LOG], "log_lines": len(found.log)}
