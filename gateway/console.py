"""What a plugin's commands and admin routes need: the configuration, Redis as it says, and a place to print.

A built-in plugin's package (in `plugins/`) has its commands in the module `commands`, which has a `typer.Typer` of the
same name. Workers do not import it. The command line looks for none in packages of one's own: a Typer there makes a
program of its own, `commands()`, with the same `open_console(Path("config.toml"))`.

    @commands.command()
    def show(name: str) -> None:
        with open_console() as console:
            console.print(console.redis.get(f"{console.prefix}:{name}"))

What the admin listener tells too (`gateway.admin.routes`) is written once, for a `Context`: `console.run(...)`.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import redis as redis_py
import rich.console
import typer
from redis.exceptions import NoPermissionError, ResponseError

from gateway.admin.context import Context, client, plugins_of, requests_at
from gateway.admin.routes import AdminRoutes, Document, Query
from gateway.config import FILE_NAME, Config, ConfigError, Overrides, redact
from gateway.config.reading import UPSTREAM_URL, read, validate
from gateway.plugin import Plugin
from gateway.store.clients import make_client

if TYPE_CHECKING:
    from redis import Redis

# A person waits: a server that is away is told at once, one that is busy gets a moment.
TIMEOUT_SECONDS: Final = 5.0
# Tables in a pipe are for programs: they are not folded.
PIPE_WIDTH: Final = 200
WRONG_CONFIG: Final = 2
MAX_SECRET: Final = 64 << 10
REFUSED: Final = re.compile(r"to run the '([^']+)'")
"""How Redis names a command that its user may not run; subcommands stand behind a `|`."""

__all__ = [
    "AdminRoutes",
    "Console",
    "Context",
    "Document",
    "Query",
    "garbage_is_nothing",
    "open_console",
    "read_secret",
    "settings",
    "without_garbage",
]

P = TypeVar("P", bound=Plugin)
T = TypeVar("T")


@dataclass
class ConsoleSettings:
    """The options in front of a command; the command line sets them before a command runs."""

    config: Path | None = None
    redis: str | None = None


settings: Final = ConsoleSettings()


class Console:
    """One command's view of the gateway.

    Args:
        config: the configuration; its upstreams and routes may be made up.
        source: what errors name.
        folder: where a configuration's own plugins lie.
        redis: a connection of redis-py, with replies as bytes; None for a command that needs none.
        url: where that Redis is.
    """

    def __init__(self, config: Config, source: str, folder: Path, redis: Redis | None, url: str) -> None:
        self.config = config
        self.prefix = config.redis.prefix
        self._redis = redis
        self._url = url
        self._source = source
        self._folder = folder
        width = None if sys.stdout.isatty() else PIPE_WIDTH
        # What is printed comes from Redis: square brackets and colons in it are no markup.
        self._out = rich.console.Console(width=width, highlight=False, markup=False, emoji=False)

    @property
    def redis(self) -> Redis:
        """A connection of redis-py, with replies as bytes."""
        assert self._redis is not None, "the console was opened without Redis"
        return self._redis

    def print(self, *what: Any) -> None:
        """Text or tables, as rich shows them."""
        self._out.print(*what)

    def fail(self, message: str) -> typer.Exit:
        """Say what is wrong on standard error: `raise console.fail("...")`."""
        return _fail(message)

    def plugins(self, kind: type[P]) -> list[P]:
        """The configuration's plugins of a class, so that a command finds the keys they use; else one with defaults.

        Raises:
            typer.Exit: one of them is wrong, or there must be one and is not; it was told.
        """
        try:
            return plugins_of(self.config, self._folder, kind, self._source)
        except ConfigError as error:
            raise _fail(str(error), WRONG_CONFIG) from None

    def run(self, work: Callable[[Context], Awaitable[T]]) -> T:
        """Do what the admin listener does too: with a client of redis.asyncio, in a loop of its own.

        Raises:
            typer.Exit: the configuration is wrong; it was told.
        """

        async def run() -> T:
            async with client(self._url, TIMEOUT_SECONDS) as redis:
                context = Context(self.config, self._folder, redis, lambda: requests_at(self.config.admin))
                return await work(context)

        try:
            return asyncio.run(run())
        except ConfigError as error:
            raise _fail(str(error), WRONG_CONFIG) from None


@contextmanager
def open_console(
    config_path: Path | None = None, *, upstream: str | None = None, with_redis: bool = True
) -> Iterator[Console]:
    """Read the configuration and connect to its Redis, for one command.

    What Redis or the network then refuses ends the command with one line.

    Args:
        config_path: instead of `--config`; without both, `config.toml` in the working directory if there is one.
        upstream: where the upstream called default is, instead of what the configuration says.
        with_redis: False for a command that needs none: it need not be there.

    Raises:
        typer.Exit: with 2 for a wrong configuration, with 1 if Redis cannot be reached or refuses.
    """
    config, source, folder = _configuration(config_path or settings.config, upstream)
    if not with_redis:
        yield Console(config, source, folder, None, "")
        return
    url = _redis_url(config)
    redis = _client(url)
    try:
        redis.ping()
        yield Console(config, source, folder, redis, url)
    except redis_py.RedisError as error:
        raise _refused(url, error) from None
    finally:
        redis.close()


def read_secret(argument: str) -> str:
    """An argument, or the first line of standard input for `-`, which leaves no trace in the shell's history."""
    return sys.stdin.readline(MAX_SECRET).strip() if argument == "-" else argument


@contextmanager
def garbage_is_nothing() -> Iterator[None]:
    """End the block, and nothing more, at a key of another type than the command is for (WRONGTYPE).

    Raises:
        redis.ResponseError: Redis refuses for another reason, such as a right that its user has not got.
    """
    try:
        yield
    except ResponseError as error:
        if not str(error).startswith("WRONGTYPE"):
            raise


def without_garbage(replies: Sequence[Any]) -> list[Any]:
    """A pipeline's replies, errors among them, with None for keys of another type.

    Raises:
        redis.RedisError: the first other error among them.
    """
    found: list[Any] = [None] * len(replies)
    for number, reply in enumerate(replies):
        with garbage_is_nothing():
            if isinstance(reply, Exception):
                raise reply
            found[number] = reply
    return found


def _configuration(path: Path | None, upstream: str | None) -> tuple[Config, str, Path]:
    if path is None and Path(FILE_NAME).exists():
        path = Path(FILE_NAME)
    given = {("redis", "url"): settings.redis, UPSTREAM_URL: upstream}
    overrides: Overrides = {key: value for key, value in given.items() if value}
    try:
        draft = read(path, overrides=overrides)
        if not draft.tables.get("upstreams"):
            # `--upstream` may have given it to the gateway; a command speaks to Redis only.
            draft.tables["upstreams"] = {"default": {"url": "http://localhost"}}
        config = validate(draft)
        draft.fail()
    except ConfigError as error:
        raise _fail(str(error), WRONG_CONFIG) from None
    assert config is not None
    return config, draft.source, draft.folder


def _redis_url(config: Config) -> str:
    if config.redis.url != "embedded":
        return config.redis.url
    from gateway.store.embedded import running_url

    url = running_url(config.redis.state_dir)
    if url is None:
        raise _fail("the embedded server is not running; start the gateway first or give --redis URL")
    return str(url)


def _client(url: str) -> Redis:
    try:
        return make_client(url, TIMEOUT_SECONDS, "gateway-console")
    except ValueError as error:  # its text does not repeat the URL
        raise _fail(f"redis.url: {error}", WRONG_CONFIG) from None
    except redis_py.RedisError as error:
        raise _refused(url, error) from None


def _refused(url: str, error: redis_py.RedisError) -> typer.Exit:
    why = _missing_right(error) if isinstance(error, NoPermissionError) else error
    return _fail(f"Redis at {redact(url)}: {why}")


def _missing_right(error: NoPermissionError) -> str:
    """What the user of Redis may not, and what to do. Names of keys, which may hold secrets, are left out."""
    remedy = "`gateway doctor --acl` prints all rights that commands need"
    if command := REFUSED.search(str(error)):
        name = command[1].lower()
        return f"its user may not run {name.upper().replace('|', ' ')}: grant it +{name}; {remedy}"
    return f"its user may not use the keys that this command needs: grant it their names (~PATTERN); {remedy}"


def _fail(message: str, code: int = 1) -> typer.Exit:
    out = rich.console.Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)
    out.print(f"gateway: {message}", style="red")
    return typer.Exit(code)
