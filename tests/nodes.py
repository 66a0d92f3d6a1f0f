"""Whole gateways as processes of their own: a supervisor with its workers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import orjson
from prometheus_client.parser import text_string_to_metric_families

# Free ports are chosen by the kernel, and told with the first line on standard output.
SCRIPT = """
import json, sys, uvloop
from pathlib import Path
from gateway import supervisor
from gateway.admin import app
from gateway.config import load
def on_ready(ready):
    print(json.dumps({"url": ready.url, "admin": ready.admin_url, "redis": ready.redis}), flush=True)
supervisor.BACKOFF_BASE = 0.001
app.COLLECT_SECONDS = 0.4
path = Path(sys.argv[1])
sys.exit(uvloop.run(supervisor.Supervisor(load(path), path=path, on_ready=on_ready).run()))
"""


def toml(config: dict[str, Any], prefix: str = "") -> str:
    """Tables of plain values, enough for these tests."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in config.items() if not nested(value)]
    for key, value in config.items():
        if isinstance(value, dict):
            lines += [f"[{prefix}{key}]", toml(value, f"{prefix}{key}.")]
        elif nested(value):
            for table in value:
                lines += [f"[[{prefix}{key}]]", toml(table, f"{prefix}{key}.")]
    return "\n".join(lines)


def nested(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and bool(value) and isinstance(value[0], dict))


@dataclass
class Node:
    """One gateway."""

    path: Path
    config: dict[str, Any]
    process: asyncio.subprocess.Process = None  # type: ignore[assignment]
    url: str = ""
    admin: str = ""
    errors: bytearray = field(default_factory=bytearray)
    _readers: list[asyncio.Task[None]] = field(default_factory=list)

    def write(self, **tables: Any) -> None:
        """Change top-level tables of the configuration file."""
        self.config = {**self.config, **tables}
        self.path.write_text(toml(self.config))

    async def start(self) -> Node:
        """Start it; returns when it is ready, or has ended."""
        self.write()
        self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            SCRIPT,
            str(self.path),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert self.process.stdout is not None
        self._readers.append(asyncio.create_task(self._read_errors()))
        line = await asyncio.wait_for(self.process.stdout.readline(), 20)
        if line:
            told = json.loads(line)
            self.url, self.admin = told["url"], told["admin"]
        return self

    async def _read_errors(self) -> None:
        assert self.process.stderr is not None
        while piece := await self.process.stderr.read(65536):
            self.errors += piece

    @property
    def text(self) -> str:
        """What it has said on standard error."""
        return self.errors.decode()

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    async def ended(self, within: float = 10) -> int:
        """Its exit code, and all it said is in `text`."""
        code = await asyncio.wait_for(self.process.wait(), within)
        await asyncio.wait(self._readers, timeout=within)
        return code

    async def health(self, query: str = "") -> dict[str, Any]:
        async with aiohttp.ClientSession() as session, session.get(f"{self.admin}/_gateway/health{query}") as answer:
            return {"http": answer.status, **orjson.loads(await answer.read())}

    async def workers(self) -> list[int]:
        """Process ids of the workers that are ready."""
        return [worker["pid"] for worker in (await self.health())["workers"] if worker["ready"]]

    async def metrics(self) -> dict[str, float]:
        """Each metric, added up over its labels."""
        async with aiohttp.ClientSession() as session, session.get(f"{self.admin}/_gateway/metrics") as answer:
            text = await answer.text()
        found: dict[str, float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                found[sample.name] = found.get(sample.name, 0) + sample.value
        return found


@contextlib.asynccontextmanager
async def running_node(folder: Path, **tables: Any) -> AsyncIterator[Node]:
    """A gateway with these tables; what is missing is filled in."""
    config: dict[str, Any] = {
        "server": {"listen": "127.0.0.1:0", "workers": 1, "drain_timeout": 5},
        "admin": {"listen": "127.0.0.1:0"},
        "log": {"access": False},
        "routes": [{"name": "all", "plugins": list(tables.get("plugins", {}))}],
    }
    for key, table in tables.items():
        config[key] = {**config[key], **table} if isinstance(config.get(key), dict) else table
    node = Node(folder / "config.toml", config)
    try:
        yield await node.start()
    finally:
        with contextlib.suppress(ProcessLookupError):
            node.signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(node.process.wait(), 10)
        except TimeoutError:
            node.process.kill()
            await node.process.wait()
        # Its pipes would be closed by a loop that has gone.
        node.process._transport.close()  # type: ignore[attr-defined]
