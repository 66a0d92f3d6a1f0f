"""What the doctor finds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum


class Level(Enum):
    """How bad it is, the worst first."""

    CRITICAL = "critical"
    """The gateway does not work with it, or will stop to when something foreseeable happens."""
    WARNING = "warning"
    """It works, and costs something: look at it."""
    UNKNOWN = "unknown"
    """It could not be looked at."""
    OK = "ok"


LEVELS: tuple[Level, ...] = tuple(Level)


@dataclass(frozen=True, slots=True)
class Finding:
    """One check's result.

    Args:
        check: what was looked at.
        found: what was there.
        hint: what to do about it; empty where nothing is to be done.
        node: the server it is about; empty if it is about all.
    """

    check: str
    level: Level
    found: str
    hint: str = ""
    node: str = ""


def worst(findings: Iterable[Finding]) -> Level:
    """The worst level among them; OK without any."""
    return min((finding.level for finding in findings), key=LEVELS.index, default=Level.OK)


def by_level(findings: Iterable[Finding]) -> list[Finding]:
    """The worst first, otherwise in their order."""
    return sorted(findings, key=lambda finding: LEVELS.index(finding.level))
