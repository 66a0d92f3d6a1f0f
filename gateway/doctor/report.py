"""Findings as a table, and for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from gateway.doctor.findings import LEVELS, Finding, Level, by_level, worst
from gateway.doctor.nodes import Node

STYLES: Final = {Level.CRITICAL: "bold red", Level.WARNING: "yellow", Level.UNKNOWN: "cyan", Level.OK: "green"}
PLURALS: Final = {Level.WARNING: "warnings"}


@dataclass(slots=True)
class Row:
    """A line of the table: a finding, of one server or of several."""

    finding: Finding
    checks: list[str]
    nodes: list[str]

    def add(self, finding: Finding) -> None:
        if finding.check not in self.checks:
            self.checks.append(finding.check)
        if finding.node and finding.node not in self.nodes:
            self.nodes.append(finding.node)


def rows(findings: Iterable[Finding]) -> list[Row]:
    """What several servers have in common in one line; so is what could not be looked at for one reason."""
    found: dict[tuple[str, ...], Row] = {}
    for finding in by_level(findings):
        parts = {
            # What is as it should be differs in figures only.
            Level.OK: (finding.check,),
            Level.UNKNOWN: (finding.found, finding.hint),
        }.get(finding.level, (finding.check, finding.found, finding.hint))
        row = found.setdefault((finding.level.value, *parts), Row(finding, [], []))
        row.add(finding)
    return list(found.values())


def table(findings: Sequence[Finding], nodes: Sequence[Node], where: str) -> RenderableType:
    """For people: the worst first, each with what to do."""
    shown = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    shown.add_column(no_wrap=True)
    shown.add_column(no_wrap=True)
    shown.add_column(overflow="fold")
    lines = rows(findings)
    for row in lines:
        finding = row.finding
        text = Text(finding.found)
        if finding.level is Level.UNKNOWN:
            text = Text(f"{', '.join(row.checks)}: {finding.found}")
        if finding.level is Level.OK and len(row.nodes) > 1:
            text.append(f" ({len(row.nodes) - 1} more ok)", style="dim")
        elif finding.level is not Level.OK and len(nodes) > 1 and row.nodes:
            text = Text(f"{', '.join(row.nodes) if len(row.nodes) < len(nodes) else 'all servers'}: ").append(text)
        if finding.hint:
            text.append(f"\n→ {finding.hint}", style="italic")
        title = "not looked at" if finding.level is Level.UNKNOWN else finding.check
        shown.add_row(Text(finding.level.value, style=STYLES[finding.level]), title, text)
    servers = [f"{node.address} ({node.role})" for node in nodes]
    head = Text(f"{where}: {', '.join(servers)}" if len(servers) > 1 else where, style="bold")
    return Group(head, shown, Text(summary(lines), style=STYLES[worst(findings)]))


def summary(lines: Sequence[Row]) -> str:
    """`1 critical, 3 warnings, 12 ok`."""
    counts: Counter[Level] = Counter()
    for row in lines:
        counts[row.finding.level] += len(row.checks)
    return ", ".join(
        f"{counts[level]} {PLURALS.get(level, level.value) if counts[level] != 1 else level.value}"
        for level in LEVELS
        if counts[level]
    )


def document(findings: Sequence[Finding], nodes: Sequence[Node], where: str) -> dict[str, Any]:
    """For programs; what is about all servers has null for its node."""
    return {
        "level": worst(findings).value,
        "redis": where,
        "nodes": [{"role": node.role, "address": node.address} for node in nodes],
        "findings": [
            {
                "check": finding.check,
                "level": finding.level.value,
                "node": finding.node or None,
                "found": finding.found,
                "hint": finding.hint or None,
            }
            for finding in by_level(findings)
        ],
    }
