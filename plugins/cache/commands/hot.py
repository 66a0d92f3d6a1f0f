"""`gateway cache hot`."""

from __future__ import annotations

from typing import Annotated

import typer

from gateway.console import open_console
from plugins.cache.commands.shown import clean, columns, number, print_json, rate
from plugins.cache.ranked import hottest


def hot(
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Show at most so many.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Rank the keys that the whole fleet reads most from Redis, counted anew every 10 s."""
    with open_console() as console:
        told = console.run(lambda context: hottest(context, limit))
        if as_json:
            print_json(told)
            return
        if not told["keys"]:
            console.print("Nothing was read from Redis in the last seconds: what workers have in memory is read there.")
            return
        table = columns("#", "reads/s", "reads", "spread over", "url", "digest", right=("#", "reads/s", "reads"))
        for line in told["keys"]:
            copies = line["copies"]
            spread = f"{copies} of {told['shards']} keys" if line["hot"] or copies > 1 else "-"
            url = clean(line["url"]) or "-"
            table.add_row(
                str(line["rank"]), rate(line["per_second"]), number(line["reads"]), spread, url, line["digest"]
            )
        console.print(table)
        console.print(f"A key is spread from {number(told['threshold'])} reads/s on (hot_threshold).")
