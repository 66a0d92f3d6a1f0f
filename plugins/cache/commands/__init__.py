"""`gateway cache ...`: one command a module."""

import typer

from plugins.cache.commands.explain import explain
from plugins.cache.commands.hot import hot
from plugins.cache.commands.purge import purge
from plugins.cache.commands.stats import stats
from plugins.cache.commands.warm import warm

__all__ = ["commands", "shortcuts"]

commands = typer.Typer(name="cache", help="Look into the cache, warm it, purge it.", no_args_is_help=True)


@commands.callback()
def group() -> None:
    """Look into the cache, warm it, purge it."""


# Also without the group's name in front.
shortcuts = {"hot": hot}

for command in (explain, hot, purge, stats, warm):
    commands.command()(command)
