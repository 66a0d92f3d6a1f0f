"""`gateway cache ...`: one command a module."""

import typer

from plugins.cache.commands.purge import purge

__all__ = ["commands"]

commands = typer.Typer(name="cache", help="Purge stored answers.", no_args_is_help=True)


@commands.callback()
def group() -> None:
    """Purge stored answers."""


commands.command()(purge)
