"""`gateway cache stats`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.console import Console as Screen
from rich.progress import Progress

from gateway.console import Console, Document, open_console
from plugins.cache.commands.shown import clean, columns, number, pairs, print_json, rate, share, size
from plugins.cache.stats import MAX_KEYS
from plugins.cache.stats import stats as collect


def stats(
    max_keys: Annotated[
        int, typer.Option(min=1000, help="Look at most at so many keys; where there are more, estimate.")
    ] = MAX_KEYS,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Tell what is stored and what it weighs, the hit ratio by route, Redis' memory, and the hottest keys."""
    with open_console() as console:
        screen = Screen(stderr=True)
        with Progress(console=screen, transient=True, disable=as_json or not sys.stderr.isatty()) as bar:
            task = bar.add_task("looking at keys", total=None)
            told = console.run(
                lambda context: collect(
                    context,
                    max_keys=max_keys,
                    progress=lambda done, total: bar.update(task, completed=done, total=total),
                )
            )
        if as_json:
            print_json(told)
            return
        print_kinds(console, told)
        console.print()
        print_routes(console, told["routes"])
        console.print()
        print_server(console, told["server"])
        if told["hottest"]:
            console.print()
            print_hottest(console, told["hottest"])


def print_kinds(console: Console, told: Document) -> None:
    """Keys and bytes by kind, and how they were counted."""
    table = columns("stored", "keys", "bytes", right=("keys", "bytes"))
    for kind, found in told["kinds"].items():
        table.add_row(kind, number(found["keys"]), size(found["bytes"]))
    table.add_row("in all", number(told["keys"]), size(told["bytes"]), style="bold")
    console.print(table)
    if told["exact"]:
        console.print(f"Exact: all {number(told['all_keys'])} keys of this Redis were looked at.")
    else:
        console.print(
            f"Estimated from {number(told['looked_at'])} of {number(told['all_keys'])} keys; --max-keys looks at more."
        )


def print_routes(console: Console, routes: list[Document] | None) -> None:
    """How requests ended, by route."""
    if routes is None:
        console.print("Hit ratio by route: no gateway answers at admin.listen of this configuration on this machine.")
        return
    if not routes:
        console.print("Hit ratio by route: no route of this configuration has a cache in its chain.")
        return
    counts = ("hit", "stale", "miss", "pass", "refused", "failed")
    table = columns("route", "hit ratio", *counts, right=("hit ratio", *counts))
    for route in routes:
        table.add_row(route["route"], share(route["hit_ratio"]), *[number(route[name]) for name in counts])
    console.print(table)
    console.print("Of this machine's gateway, since it started; the ratio is hit and stale of hit, stale and miss.")


def print_server(console: Console, server: Document) -> None:
    """What Redis says of itself; of a cluster each primary, too, as one alone may be full."""
    table = pairs()
    table.add_row("Redis", clean(str(server["version"])))
    table.add_row("memory", f"{memory(server)} ({clean(str(server['policy']))})")
    table.add_row("evicted", f"{number(server['evicted'])} keys, for lack of memory")
    table.add_row("expired", f"{number(server['expired'])} keys, at their end")
    console.print(table)
    if "primaries" in server:
        each = columns("primary", "memory", "evicted", "expired", right=("evicted", "expired"))
        for address, one in server["primaries"].items():
            each.add_row(clean(address), memory(one), number(one["evicted"]), number(one["expired"]))
        console.print()
        console.print(each)


def memory(server: Document) -> str:
    """`1.5 MiB of 10.0 MiB`."""
    most = size(server["max_memory"]) if server["max_memory"] else "no limit"
    return f"{size(server['used_memory'])} of {most}"


def print_hottest(console: Console, lines: list[Document]) -> None:
    """What is read most from Redis."""
    table = columns("reads/s", "hottest keys", right=("reads/s",))
    for line in lines:
        table.add_row(rate(line["per_second"]), clean(line["url"]) or line["digest"])
    console.print(table)
