"""The command line: run, check, schema, doctor, demo, and the plugins' own commands. One function a command."""

from __future__ import annotations

import json
import shlex
import shutil
import socket
import sys
import sysconfig
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn, TextIO

import typer
import uvloop
from rich.console import Console
from rich.table import Table

from gateway import demo, translated
from gateway.config import FILE_NAME, Config, ConfigError, Overrides, RedisTable, RouteTable, redact
from gateway.console import settings
from gateway.doctor.command import doctor
from gateway.loader import built_in_parts, load_all
from gateway.plugin import Plugin
from gateway.schema import json_schema
from gateway.store.embedded import running_url, state_folder
from gateway.supervisor import Ready, Supervisor

FAILED: Final = 1
WRONG_CONFIG: Final = 2
# Tables in a pipe or a log are not folded.
PIPE_WIDTH: Final = 200

app = typer.Typer(
    name="gateway",
    help="A Redis-aware reverse proxy in front of your HTTP API.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help=f"Configuration; else ./{FILE_NAME} if it is there, else defaults."),
]
RedisOption = Annotated[
    str | None,
    typer.Option(
        "--redis",
        metavar="URL",
        help='redis://HOST:PORT/0, rediss://, unix://, redis+sentinel://, redis+cluster:// or "embedded".',
    ),
]
UpstreamOption = Annotated[
    str | None, typer.Option("--upstream", metavar="URL", help="The API to stand in front of: upstreams.default.url.")
]
ListenOption = Annotated[str | None, typer.Option("--listen", metavar="HOST:PORT", help="Where clients connect.")]
WorkersOption = Annotated[int | None, typer.Option("--workers", metavar="N", help="Worker processes.")]
PlainOption = Annotated[
    bool, typer.Option("--no-config", help=f"The built-in chain, even where there is a ./{FILE_NAME}.")
]
AdminOption = Annotated[str | None, typer.Option("--admin", metavar="HOST:PORT", help="Where health and metrics are.")]


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script. Exit codes: 0 done, 1 it failed, 2 the configuration or the command line is wrong."""
    mounted = [group.typer_instance for group in app.registered_groups]
    try:
        parts = built_in_parts("commands")
    except LookupError as error:
        _fail(str(error.args[0]), FAILED)
    for name, module in parts.items():
        commands = module.commands
        if commands not in mounted:
            app.add_typer(commands, name=str(commands.info.name or name))
            for word, command in getattr(module, "shortcuts", {}).items():
                app.command(word)(command)
    try:
        app(arguments, prog_name="gateway")
    except ConfigError as error:
        _fail(str(error), WRONG_CONFIG)
    except OSError as error:
        _fail(f"{error.filename or ''}: {error.strerror or error}".removeprefix(": "), FAILED)


def _fail(message: str, code: int) -> NoReturn:
    _console(sys.stderr).print(f"gateway: {message}", style="red", markup=False, soft_wrap=True)
    sys.exit(code)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"gateway {version('redis-gateway')}{' (hot path in C)' if translated() else ''}")
        raise typer.Exit


@app.callback()
def options(
    config: ConfigOption = None,
    redis: RedisOption = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options in front of a command are for all commands, also for the plugins'."""
    settings.config, settings.redis = config, redis


@app.command()
def run(
    config: ConfigOption = None,
    upstream: UpstreamOption = None,
    listen: ListenOption = None,
    redis: RedisOption = None,
    workers: WorkersOption = None,
    admin: AdminOption = None,
    plain: PlainOption = False,
) -> None:
    """Start the gateway. `--upstream URL` alone is enough. Ctrl-C or SIGTERM: requests in flight are finished."""
    serve(None if plain else find_config(config), overrides(upstream, listen, redis, workers, admin))


@app.command()
def check(config: ConfigOption = None, upstream: UpstreamOption = None) -> None:
    """Validate the configuration and print its routes and chains; exit code 2 and all errors if it is wrong."""
    path = find_config(config)
    read, plugins = load_all(path, overrides=overrides(upstream))
    console = _console(sys.stdout)
    console.print(f"{path or 'built-in configuration'}: no problems", markup=False)
    describe(console, read, plugins)
    for name in sorted(set(read.plugins) - {name for route in read.routes for name in route.plugins}):
        console.print(f"note: no route uses plugins.{name}", markup=False)
    for name in sorted(set(read.upstreams) - {route.upstream for route in read.routes}):
        console.print(f"note: no route uses upstreams.{name}", markup=False)


@app.command()
def schema() -> None:
    """Print the JSON Schema of the configuration, for editors."""
    typer.echo(json.dumps(json_schema(), indent=2))


app.command()(doctor)


@app.command("demo")
def run_demo(
    upstream: UpstreamOption = None,
    listen: ListenOption = None,
    redis: RedisOption = None,
    admin: AdminOption = None,
) -> None:
    """Start a small API, the gateway with the shipped configuration in front of it, and print what to try."""
    api = None
    if upstream is None:
        api, upstream = demo.bind()
    serve(shipped_config(), overrides(upstream, listen, redis, admin=admin), api)


# -- serving -----------------------------------------------------------------------------------


def serve(path: Path | None, chosen: Overrides, api: socket.socket | None = None) -> None:
    """Run the gateway until it is told to end.

    Args:
        path: the configuration; None means the built-in defaults.
        chosen: what the command line says.
        api: where the demo's API is to listen; None for no demo.

    Raises:
        ConfigError: with everything that is wrong.
        typer.Exit: when it has ended.
    """
    config, plugins = load_all(path, overrides=chosen)

    def on_ready(ready: Ready) -> None:
        # Standard output is the access log's.
        console = _console(sys.stderr)
        workers = config.server.workers
        count = f"{workers} worker{'s' if workers > 1 else ''}"
        console.print(f"gateway listens on {ready.url} ({count}, pid {ready.pid})", style="bold", markup=False)
        if ready.admin_url is not None:
            console.print(f"  admin     {ready.admin_url}/_gateway/health", markup=False)
        describe(console, config, plugins)
        if api is not None:
            console.print()
            console.print("Try these in another terminal, one after the other:", style="bold")
            for line in demo.curl_lines(ready.url, gateway_command(config)):
                console.print(f"\n# {line.shows}", style="green", markup=False, soft_wrap=True)
                console.print(line.command, markup=False, soft_wrap=True)
            console.print()
        console.print("Ctrl-C ends it; requests in flight are finished.")

    async def run_all() -> int:
        supervisor = Supervisor(config, path=path, overrides=chosen, on_ready=on_ready)
        if api is None:
            return await supervisor.run()
        async with demo.serve(api, lambda: redis_url(config), config.redis.prefix):
            return await supervisor.run()

    raise typer.Exit(uvloop.run(run_all()))


def redis_url(config: Config) -> str | None:
    """Where Redis is; None while the embedded server does not run."""
    redis = config.redis
    return running_url(redis.state_dir) if redis.url == "embedded" else redis.url


def gateway_command(config: Config) -> str:
    """How a shell calls this gateway's commands so that they find its Redis, without telling its password."""
    script = Path(sys.argv[0])
    words = [str(script.absolute())] if script.name == "gateway" else [sys.executable, "-m", "gateway"]
    if script.name == "gateway" and shutil.which("gateway") == words[0]:
        words = ["gateway"]
    command = shlex.join(words)
    redis = config.redis
    if redis.url != RedisTable.model_fields["url"].default:
        secret = redact(redis.url) != redis.url
        return f"{command} --redis " + ('"$GATEWAY_REDIS_URL"' if secret else shlex.quote(redis.url))
    if redis.state_dir:
        return f"GATEWAY_STATE_DIR={shlex.quote(redis.state_dir)} {command}"
    return command


# -- what commands are made of -----------------------------------------------------------------


def find_config(given: Path | None) -> Path | None:
    """The file to read; None means the built-in defaults."""
    path = given or settings.config
    if path is None and Path(FILE_NAME).exists():
        return Path(FILE_NAME)
    return path


def shipped_config() -> Path:
    """The `config.toml` that comes with the gateway.

    Raises:
        FileNotFoundError: the installation is not complete.
    """
    checkout = Path(__file__).parents[1] / FILE_NAME
    installed = Path(sysconfig.get_path("data"), "share", "redis-gateway", FILE_NAME)
    for path in (checkout, installed):
        if path.is_file():
            return path
    raise FileNotFoundError(2, "the configuration that comes with the gateway is missing", str(installed))


def overrides(
    upstream: str | None = None,
    listen: str | None = None,
    redis: str | None = None,
    workers: int | None = None,
    admin: str | None = None,
) -> dict[tuple[str, ...], Any]:
    """The command line's options as the configuration's keys."""
    values = {
        ("upstreams", "default", "url"): upstream,
        ("server", "listen"): listen,
        ("redis", "url"): redis or settings.redis,
        ("server", "workers"): workers,
        ("admin", "listen"): admin,
    }
    return {key: value for key, value in values.items() if value is not None}


def describe(console: Console, config: Config, plugins: dict[str, Plugin]) -> None:
    """What it fronts, which Redis, and the routes with their chains."""
    for name, upstream in config.upstreams.items():
        console.print(f"  upstream  {upstream.url} ({name})", markup=False)
    redis = config.redis
    where = f"embedded, data in {state_folder(redis.state_dir)}" if redis.url == "embedded" else redact(redis.url)
    console.print(f"  redis     {where}", markup=False, soft_wrap=True)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 2))
    for title in ("route", "matches", "chain"):
        table.add_column(title, overflow="fold")
    for route in config.routes:
        table.add_row(route.name or "-", str(route.match), " → ".join([*_chain(route, plugins), route.upstream]))
    console.print(table)


def _chain(route: RouteTable, plugins: dict[str, Plugin]) -> list[str]:
    return [name if name in plugins else f"({name} is off)" for name in route.plugins]


def _console(stream: TextIO) -> Console:
    return Console(file=stream, highlight=False, width=None if stream.isatty() else PIPE_WIDTH)
