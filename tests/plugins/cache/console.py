"""Runs `gateway cache ...` beside gateways in the test's own loop."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.cli import main
from gateway.console import settings

CONFIG = """
[redis]
url = "{redis}"
[admin]
listen = "{admin}"
[upstreams.default]
url = "{upstream}"
[plugins.request_id]
[plugins.session]
required = false
[plugins.cache]
hot_threshold = 5
shards = 3
{cache}
[[routes]]
name = "all"
match.host = "*.test"
plugins = {chain}
[[routes]]
name = "plain"
match.host = "*.test"
match.path = "/plain/*"
[[routes]]
name = "read"
match.host = "*.test"
match.path = "/read"
match.methods = ["GET"]
plugins = ["cache"]
"""
CHAIN = '["request_id", "cache"]'


def write_config(
    folder: Path, redis_url: str, upstream_url: str, *, admin: str = "127.0.0.1:1", cache: str = "", chain: str = CHAIN
) -> Path:
    """The configuration that the command reads; nodes get the same by `tomllib`."""
    path = folder / "config.toml"
    path.write_text(CONFIG.format(redis=redis_url, upstream=upstream_url, admin=admin, cache=cache, chain=chain))
    return path


@dataclass
class Done:
    """What a command has come to."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


async def command(config: Path, *arguments: str, group: tuple[str, ...] = ("cache",)) -> Done:
    """Run one to its end. It has a loop of its own, so it runs in a thread."""
    out, err = io.StringIO(), io.StringIO()

    def run() -> int:
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            try:
                main(["--config", str(config), *group, *arguments])
            except SystemExit as ended:
                return int(ended.code or 0)
            finally:
                settings.config = settings.redis = None
        return 0

    return Done(await asyncio.to_thread(run), out.getvalue(), err.getvalue())
