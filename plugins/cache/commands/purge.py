"""`gateway cache purge`. Nothing here searches the keyspace."""

from __future__ import annotations

from typing import Annotated

import typer

from gateway.console import open_console
from plugins.cache.purge import Purge, parse_url


def purge(
    url: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="As clients see it, with its query: for all users, variants and schemes."),
    ] = None,
    host: Annotated[
        str | None, typer.Option(metavar="HOST", help="What clients send in Host, for a --url that is only /path.")
    ] = None,
    user: Annotated[list[str] | None, typer.Option(metavar="ID", help="All answers for this user.")] = None,
    tag: Annotated[
        list[str] | None, typer.Option(metavar="TAG", help="All answers that the upstream gave this tag.")
    ] = None,
    route: Annotated[list[str] | None, typer.Option(metavar="NAME", help="All answers of this route.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All answers.")] = False,
    soft: Annotated[
        bool,
        typer.Option("--soft", help="Keep them for revalidation and in place of errors; they are no longer fresh."),
    ] = False,
) -> None:
    """Purge answers on all nodes, at once; options may be repeated and combined."""
    with open_console() as console:
        if not (url or user or tag or route or everything):
            raise console.fail("say what to purge: --url, --user, --tag, --route or --all")
        try:
            urls = [parse_url(text, host) for text in url or ()]
        except ValueError as error:
            raise console.fail(str(error)) from None
        known = [table.label for table in console.config.routes]
        for name in route or ():
            if known and name not in known:
                raise console.fail(f"there is no route {name!r}; the configuration has {', '.join(known)}")
        what = Purge(urls, user or (), tag or (), route or (), everything, soft)
        what.execute_sync(console.redis, console.prefix)
        console.print(f"Purged{' softly' if soft else ''} {', '.join(what.named())}.")
