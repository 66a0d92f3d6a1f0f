"""`gateway cache explain`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final

import typer

from gateway.console import Console, Document, open_console
from plugins.cache.commands.fields import HeaderOption, parse_fields
from plugins.cache.commands.shown import clean, pairs, print_json, size, span
from plugins.cache.explain import Asked
from plugins.cache.explain import explain as look

MAX_BODY: Final = 16 << 20
ELSEWHERE: Final = "A gateway that was started with another upstream, as the demo is, has other keys: --upstream URL."


def explain(
    url: Annotated[str, typer.Argument(metavar="URL", help="As clients see it, with its query.")],
    header: HeaderOption = None,
    method: Annotated[
        str | None,
        typer.Option("-X", "--method", metavar="METHOD", help="The request's method; else GET, or POST with -d."),
    ] = None,
    data: Annotated[
        str | None, typer.Option("-d", "--data", metavar="TEXT", help="The request's body; @FILE reads it from a file.")
    ] = None,
    as_user: Annotated[
        str | None, typer.Option(metavar="ID", help="Whom a plugin before the cache finds it to speak for.")
    ] = None,
    upstream: Annotated[
        str | None, typer.Option(metavar="URL", help="As the gateway was started with: it is a part of the key.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Tell what the cache makes of a request and what it has for it; nothing is sent to the upstream."""
    with open_console(upstream=upstream) as console:
        try:
            method = method or ("GET" if data is None else "POST")
            asked = Asked(url, method, parse_fields(header), read_body(data), as_user)
            told = console.run(lambda context: look(context, asked))
        except ValueError as error:
            raise console.fail(str(error)) from None
        if as_json:
            print_json(told)
        else:
            print_explained(console, told, as_user)
            if upstream is None and told["key"] and not told["bypass"] and not told["stored"]:
                console.print(f"\n{ELSEWHERE}")


def read_body(data: str | None) -> bytes | None:
    """A body as it is given on the command line.

    Raises:
        ValueError: the file cannot be read, or is longer than a request's body may be.
    """
    if data is None or not data.startswith("@"):
        return None if data is None else data.encode("utf-8", "surrogateescape")
    try:
        with Path(data[1:]).open("rb") as file:
            body = file.read(MAX_BODY + 1)
    except OSError as error:
        raise ValueError(f"{data}: {error.strerror}") from None
    if len(body) > MAX_BODY:
        raise ValueError(f"{data}: longer than {size(MAX_BODY)}")
    return body


def print_explained(console: Console, told: Document, as_user: str | None) -> None:
    """The document, for people."""
    console.print(clean(told["verdict"]))
    console.print()
    table = pairs()
    add(table, "route", told["route"])
    add(table, "chain", " → ".join(told.get("chain", ())))
    if told["key"]:
        _print_key(table, told, as_user)
    if told["lock"]:
        held = told["lock"]["held"]
        add(table, "lock", f"held for at most {span(told['lock']['ends_in'])} more" if held else "free")
    stored = told["stored"]
    if stored:
        table.add_section()
        _print_stored(table, stored)
    if told["generations"]:
        _print_generations(table, told)
    console.print(table)


def add(table: Any, name: str, value: Any) -> None:
    """A row, if there is something to tell."""
    if value not in (None, "", []):
        table.add_row(name, clean(str(value)))


def _print_key(table: Any, told: Document, as_user: str | None) -> None:
    made = told["key"]["of"]
    add(table, "cache", told["cache"])
    add(table, "bypass", told["bypass"])
    add(table, "key", told["key"]["name"])
    add(table, "made of", f"{made['scheme']}://{made['host']}{made['target']} of route {made['route']}")
    add(table, "upstream", made["upstream"])
    add(table, "and of", ", ".join([*made["fields"], *[f"cookie {name}" for name in made["cookies"]], *made["body"]]))
    whose = ", ".join(made["who"])
    add(table, "for whom", f"those who send the same: {whose}" if whose and as_user is None else whose or "everybody")
    add(table, "steering", ", ".join(made["steering"]))
    if as_user is None and (before := told.get("before_cache")):
        add(table, "not asked", f"{', '.join(before)}: if one of them knows the user, give --as-user ID")
    for name, values in (told.get("varies_on") or {}).items():
        given = ", ".join(values) if values else "not sent; give it with -H"
        add(table, f"varies on {name}", given)
    if "for_all" in told:
        add(table, "for all", f"{told['for_all']['name']}: the upstream says public or s-maxage")
    if "variant" in told:
        add(table, "variant", told["variant"]["name"])


def _print_stored(table: Any, stored: Document) -> None:
    add(table, "stored", f"{stored['kind']}, {size(stored['bytes'])} in Redis")
    if stored["kind"] != "answer":
        add(table, "ends in", span(stored["ends_in"]))
        return
    coded = f", {stored['encoding']}" if stored["encoding"] else ""
    add(table, "answer", f"{stored['status']} {stored['content_type'] or ''}, body {size(stored['body_bytes'])}{coded}")
    if stored["part"]:
        first, last, complete = stored["part"]
        add(table, "part", f"bytes {first}-{last} of {complete or 'unknown'}")
    add(table, "age", span(stored["age"]))
    add(table, "fresh for", span(stored["fresh_for"]))
    for name, title in (("stale_while_revalidate_for", "while refreshing"), ("stale_if_error_for", "if error")):
        if stored[name] > stored["fresh_for"]:
            add(table, f"stale {title}", f"for another {span(stored[name])}")
    add(table, "kept for", span(stored["kept_for"]))
    add(table, "Cache-Control", stored["cache_control"])
    add(table, "ETag", stored["etag"])
    add(table, "Last-Modified", stored["last_modified"])
    add(table, "tags", ", ".join(stored["tags"]))


def _print_generations(table: Any, told: Document) -> None:
    missing = [generation["of"] for generation in told["generations"] if not generation["there"]]
    purged = told["stored"]["purged"]
    if purged is None:
        add(table, "purged", f"no; it hangs on {', '.join(one['of'] for one in told['generations'])}")
    elif missing:
        add(table, "purged", f"{purged}: {', '.join(missing)}")
    else:
        add(table, "purged", f"{purged}; since then others were stored that hang on the same")
