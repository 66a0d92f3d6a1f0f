"""`gateway doctor`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Final

import orjson
import typer
from rich.console import Console as Screen
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from gateway.config import Config, redact
from gateway.console import open_console, settings
from gateway.doctor import needs
from gateway.doctor.examination import Use, examine
from gateway.doctor.findings import Level, worst
from gateway.doctor.needs import Words
from gateway.doctor.nodes import Deployment, Unreachable, find
from gateway.doctor.readings import Reading, Wanted, read
from gateway.doctor.report import document, table
from gateway.plugin import Plugin
from gateway.store.embedded import running_url
from gateway.store.url import Kind, Place, parse

MAX_KEYS: Final = 20_000
KEY_SECONDS: Final = 5.0
FAILED: Final = 1
NOT_COPIED: Final[Mapping[Kind, str]] = {
    "cluster": "For each server of the cluster, replicas too: users are not copied from one to the other",
    "sentinel": "For each server, replicas too: users are not copied from one to the other. Sentinels have users of"
    f" their own (sentinel_username in the URL), who need {needs.rules(needs.SENTINELS)}",
}
DOCTOR: Final = "doctor"
"""What its user's name ends in."""
NOT_RUNNING: Final = "the embedded server is not running: `gateway run` starts it; or give another with --redis URL"


def doctor(
    config: Annotated[Path | None, typer.Option("--config", metavar="FILE", help="Configuration.")] = None,
    redis: Annotated[str | None, typer.Option("--redis", metavar="URL", help="Look at this one instead.")] = None,
    user: Annotated[
        str | None, typer.Option(metavar="NAME", help="Whose rights to look at, instead of the URL's user.")
    ] = None,
    acl: Annotated[
        bool, typer.Option("--acl", help="Only print the commands that make users with the rights they need.")
    ] = False,
    max_keys: Annotated[
        int, typer.Option(min=1, help=f"Look at most at so many keys, for {KEY_SECONDS:g} s at most.")
    ] = MAX_KEYS,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Tell whether Redis is right for the gateway, and what to do; exit code 1 if anything is critical.

    Nothing is changed in it, and what is asked of it is bounded.
    """
    settings.redis = redis or settings.redis
    with open_console(config, with_redis=False) as console:
        where = console.config.redis
        tables = console.config.plugins
        plugins = [one for one in console.plugins(Plugin) if one.name in tables and tables[one.name].enabled]
        try:
            place = Place("single") if where.url == "embedded" else parse(where.url)
        except ValueError as error:
            raise console.fail(f"redis.url: {error}") from None
        replicas = where.read_from == "replica"
        needed = needs.needed(plugins, place, mirror=where.mirror.max_bytes > 0, replicas=replicas)
        templates = needs.key_templates(plugins, where.prefix)
        if acl:
            patterns = [template.replace("{id}", "*") for template in (f"{where.prefix}:{{id}}", *templates)]
            name = user or "gateway"
            typer.echo("\n".join(acl_of(needed, place, patterns, name)))
            # Not among the commands, which may go to redis-cli as they are.
            for line in notes_of(place, name):
                typer.echo(f"# {line}", err=True)
            return
        url = running_url(where.state_dir) if where.url == "embedded" else where.url
        if url is None:
            raise console.fail(NOT_RUNNING)
        try:
            deployment = find(url)
        except Unreachable as error:
            raise console.fail(f"Redis at {redact(url)}: {error}") from None
        # The bounds are for all servers together.
        share = max(1, sum(node.role == "primary" for node in deployment.nodes))
        wanted = Wanted(where.prefix, templates, needed, user, max_keys // share, KEY_SECONDS / share)
        try:
            readings = read_all(deployment, wanted, hidden=as_json)
            findings = examine(deployment, readings, use_of(console.config, plugins, user))
        finally:
            deployment.close()
        if as_json:
            told = document(findings, deployment.nodes, redact(url))
            typer.echo(orjson.dumps(told, option=orjson.OPT_INDENT_2).decode())
        else:
            console.print(table(findings, deployment.nodes, redact(url)))
    if worst(findings) is Level.CRITICAL:
        raise typer.Exit(FAILED)


def acl_of(needed: Sequence[Words], place: Place, patterns: Sequence[str], user: str) -> list[str]:
    """The commands that make two users: one with what workers need, and with what operators ask besides; and the
    doctor's own, who only looks.

    Args:
        patterns: of the gateway's keys.
    """
    anew = "resetkeys resetchannels -@all"
    more = [words for words in needs.operating(place) if words not in needed]
    looks = needs.rules(needs.diagnosing(place), patterns, keys="%R~")
    return [
        f"ACL SETUSER {user} on >PASSWORD {anew} {needs.rules(needed, patterns)}",
        f"ACL SETUSER {user} {needs.rules(more)}",
        f"ACL SETUSER {user}-{DOCTOR} on >DOCTORS_PASSWORD {anew} {looks}",
    ]


def notes_of(place: Place, user: str) -> list[str]:
    """What to know of these commands."""
    notes = [
        "The 1st line is what workers need. The 2nd lets the same user do what the admin listener and commands such as"
        " `gateway session revoke` ask.",
        f"The 3rd is for a user of its own, {user}-{DOCTOR}: by +config|get it reads the server's secrets (masterauth"
        " is one), and by +scan the names of all keys, others' too, which is not for workers. Have it in the URL of"
        f" --redis for `gateway doctor --user {user}` and `gateway cache stats`.",
    ]
    return [*notes, *([NOT_COPIED[place.kind]] if place.kind != "single" else [])]


def use_of(config: Config, plugins: Sequence[Plugin], user: str | None) -> Use:
    """What this configuration does with it."""
    return Use(
        prefix=config.redis.prefix,
        timeout=config.redis.timeout,
        workers=config.server.workers,
        keeps=[plugin.name for plugin in plugins if plugin.on_redis_failure == "refuse"],
        scripts=needs.scripts_of(plugins),
        user=user,
    )


def read_all(deployment: Deployment, wanted: Wanted, *, hidden: bool) -> list[Reading]:
    """Ask one server after the other, with a bar on standard error where that is a terminal."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        console=Screen(stderr=True),
        transient=True,
        disable=hidden or not sys.stderr.isatty(),
    ) as bar:
        readings = []
        for node in deployment.nodes:
            task = bar.add_task(f"looking at {node.address}", total=None)
            readings.append(read(node, wanted, partial(_advance, bar, task)))
            bar.remove_task(task)
        return readings


def _advance(bar: Progress, task: TaskID, done: int, total: int) -> None:
    bar.update(task, completed=done, total=total)
