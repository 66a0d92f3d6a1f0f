"""Numbers and documents for people, and for programs."""

from __future__ import annotations

from typing import Any

import orjson
import typer
from rich.table import Table

UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def size(count: float | None) -> str:
    """`1.5 MiB`; a dash for what is not known."""
    if count is None:
        return "-"
    unit = 0
    while count >= 1024 and unit < len(UNITS) - 1:
        count /= 1024
        unit += 1
    return f"{count:.0f} B" if unit == 0 else f"{count:.1f} {UNITS[unit]}"


def number(count: float | None) -> str:
    """`12,345`; a dash for what is not known."""
    return "-" if count is None else f"{count:,.0f}"


def rate(per_second: float) -> str:
    """`1,250`, `8.4`."""
    return f"{per_second:,.0f}" if per_second >= 10 else f"{per_second:.1f}"


def span(seconds: float) -> str:
    """`42 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def share(part: float | None) -> str:
    """`97.5 %`; a dash for what is not known."""
    return "-" if part is None else f"{100 * part:.1f} %"


def clean(text: str) -> str:
    """Text from Redis or an upstream for a terminal, without what would steer it."""
    return "".join(character if character.isprintable() else "�" for character in text)


def print_json(document: Any) -> None:
    """As a program reads it."""
    typer.echo(orjson.dumps(document, option=orjson.OPT_INDENT_2).decode())


def columns(*titles: str, right: tuple[str, ...] = ()) -> Table:
    """An empty table; the titles in `right` are of numbers."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in titles:
        table.add_column(title, justify="right" if title in right else "left", overflow="fold")
    return table


def pairs() -> Table:
    """An empty table of names and values."""
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    return table
