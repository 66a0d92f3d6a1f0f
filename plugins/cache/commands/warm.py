"""`gateway cache warm`: ask for URLs, so that they are stored before somebody wants them.

Each URL is requested through a running gateway, like any client's request, so what is stored is what the next client
gets. That is also why there is no way to warm a user's answers without something the user sends: an invented session
would lack what the application puts into a real one, and the answer made for it would be served to the user.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Final, TextIO
from urllib.parse import urlsplit

import aiohttp
import typer
from rich.console import Console as Screen
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from yarl import URL

from gateway.console import Console, Document, open_console
from plugins.cache.answers import NAME
from plugins.cache.commands.fields import HeaderOption, parse_fields
from plugins.cache.commands.shown import clean, columns, number, print_json

MAX_URLS: Final = 1_000_000
MAX_LINE: Final = 16 << 10
# So many failures are told one by one.
MAX_TOLD: Final = 10
AGENT: Final = "gateway-cache-warm"
MANY_ADDRESSES: Final = ("", "0.0.0.0", "[::]")  # noqa: S104  # to connect to them means this machine

STORED: Final = "stored"
HIT: Final = "hit"
NOT_CACHEABLE: Final = "not cacheable"
FAILED: Final = "failed"
RESULTS: Final = (STORED, HIT, NOT_CACHEABLE, FAILED)
_DETAIL: Final = re.compile(r"detail=([\w.-]+)")
_FORWARDED: Final = re.compile(r"fwd=([\w.-]+)")

AS_USER: Final = (
    "a user's answers are made for what the user sends: give it with -H, such as -H 'Cookie: session=...' of a session"
    " that the application has made for this"
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """One URL as it is asked for."""

    line: int
    url: str
    host: str
    target: str
    secure: bool
    """Clients reach it by https, through a proxy in front."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How to ask.

    Args:
        via: the gateway's own URL.
        fields: header fields for each request.
        rate: requests a second, at most.
        concurrency: requests at once, at most.
        timeout: seconds for one whole answer.
    """

    via: str
    fields: Sequence[tuple[str, str]]
    rate: float
    concurrency: int
    timeout: float


@dataclass(slots=True)
class Summary:
    """What became of them."""

    results: Counter[str] = field(default_factory=Counter)
    reasons: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Why some were not cacheable, or failed."""
    failed: list[tuple[str, str]] = field(default_factory=list)
    """The first URLs that failed, with why."""

    def add(self, url: str, result: str, reason: str) -> None:
        self.results[result] += 1
        if reason:
            self.reasons[result, reason] += 1
        if result == FAILED and len(self.failed) < MAX_TOLD:
            self.failed.append((url, reason))

    def document(self) -> Document:
        return {
            **{name.replace(" ", "_"): self.results[name] for name in RESULTS},
            "reasons": [
                {"result": result, "reason": reason, "count": count}
                for (result, reason), count in self.reasons.most_common()
            ],
            "first_failures": [{"url": url, "reason": reason} for url, reason in self.failed],
        }


def warm(
    file: Annotated[
        typer.FileText, typer.Option(metavar="FILE", help="One URL a line, as clients see it; - for stdin.")
    ],
    header: HeaderOption = None,
    rate: Annotated[float, typer.Option(min=0.1, max=100_000, help="Most requests a second.")] = 50.0,
    concurrency: Annotated[int, typer.Option(min=1, max=1000, help="Most requests at once.")] = 8,
    timeout: Annotated[float, typer.Option(min=0.1, max=3600, help="Seconds for one answer.")] = 30.0,
    via: Annotated[
        str | None, typer.Option(metavar="URL", help="The gateway to ask; else server.listen of the configuration.")
    ] = None,
    as_user: Annotated[str | None, typer.Option(hidden=True)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Ask a running gateway for URLs, so that they are stored. Exit code 1 if any failed.

    A user's answers need what the user sends: -H 'Cookie: session=...'. Variants need the fields they are told apart
    by: -H 'Accept-Encoding: gzip'.
    """
    with open_console(with_redis=False) as console:
        if as_user is not None:
            raise console.fail(f"--as-user: {AS_USER}")
        try:
            plan = Plan(base_of(console, via), parse_fields(header), rate, concurrency, timeout)
            wanted = list(read_urls(file, known_scheme(console, plan.via)))
        except ValueError as error:
            raise console.fail(str(error)) from None
        if not wanted:
            raise console.fail(f"{file.name}: there is no URL in it")
        with progress_bar(hidden=as_json) as bar:
            task = bar.add_task("warming", total=len(wanted))
            summary = asyncio.run(ask_all(wanted, plan, lambda: bar.advance(task)))
        if as_json:
            print_json(summary.document())
        else:
            print_summary(console, summary)
    if summary.results[FAILED]:
        raise typer.Exit(1)


# -- what to ask -----------------------------------------------------------------------------------


def base_of(console: Console, via: str | None) -> str:
    """The gateway's own URL.

    Raises:
        ValueError: there is none.
    """
    if via is not None:
        parts = urlsplit(via)
        if parts.scheme not in ("http", "https") or not parts.netloc or parts.path not in ("", "/") or parts.query:
            raise ValueError(f"--via {via}: expected the gateway's URL without a path, such as http://127.0.0.1:8080")
        return f"{parts.scheme}://{parts.netloc}"
    host, _, port = console.config.server.listen.rpartition(":")
    if port == "0":
        raise ValueError("server.listen takes any free port: tell where the gateway listens with --via URL")
    return f"http://{'127.0.0.1' if host in MANY_ADDRESSES else host}:{port}"


def known_scheme(console: Console, via: str) -> Callable[[Wanted], None]:
    """Raises ValueError for a URL that clients cannot reach in this way."""

    def check(wanted: Wanted) -> None:
        if wanted.secure and via.startswith("http:") and not console.config.server.trusted_proxies:
            raise ValueError(
                f"line {wanted.line}: {wanted.url}: answers for https are only stored for requests that a trusted proxy"
                " passes on, and server.trusted_proxies is empty; give it with http://, or --via the proxy"
            )

    return check


def read_urls(lines: TextIO | Iterable[str], check: Callable[[Wanted], None]) -> Iterator[Wanted]:
    """The URLs of a file; empty lines and those that begin with # are left out.

    Raises:
        ValueError: a line is no URL, or there are too many.
    """
    count = 0
    for line, text in enumerate(lines, 1):
        url = text.strip()
        if not url or url.startswith("#"):
            continue
        count += 1
        if count > MAX_URLS:
            raise ValueError(f"more than {MAX_URLS} URLs: take several files")
        parts = urlsplit(url) if len(url) <= MAX_LINE and url.isascii() and url.isprintable() else None
        if parts is None or parts.scheme not in ("http", "https") or not parts.netloc or "@" in parts.netloc:
            raise ValueError(
                f"line {line}: expected a URL such as http://example.com/path, with %XX for what is special"
            )
        target = url.partition("#")[0].partition("://")[2][len(parts.netloc) :]
        target = target if target.startswith("/") else "/" + target
        wanted = Wanted(line, url, parts.netloc, target, parts.scheme == "https")
        check(wanted)
        yield wanted


# -- asking ----------------------------------------------------------------------------------------


async def ask_all(wanted: Iterable[Wanted], plan: Plan, done: Callable[[], None]) -> Summary:
    """Ask for all, within the plan's bounds; `done` is called after each."""
    summary = Summary()
    waiting = iter(wanted)
    loop = asyncio.get_running_loop()
    turn = loop.time()

    async def work() -> None:
        nonlocal turn
        for one in waiting:
            now = loop.time()
            turn = max(turn, now)
            pause, turn = turn - now, turn + 1 / plan.rate
            await asyncio.sleep(pause)
            summary.add(one.url, *await ask(session, one, plan))
            done()

    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=plan.concurrency),
        timeout=aiohttp.ClientTimeout(plan.timeout),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        # A variant is only warmed as it was asked for.
        skip_auto_headers=("Accept", "Accept-Encoding"),
    ) as session:
        await asyncio.gather(*(work() for _ in range(plan.concurrency)))
    return summary


async def ask(session: aiohttp.ClientSession, one: Wanted, plan: Plan) -> tuple[str, str]:
    """Ask for one; what came of it, and why."""
    headers = [("Host", one.host), ("User-Agent", AGENT)]
    if one.secure and plan.via.startswith("http:"):
        headers.append(("X-Forwarded-Proto", "https"))
    given = {name.lower() for name, _ in plan.fields}
    headers = [(name, value) for name, value in headers if name.lower() not in given] + list(plan.fields)
    try:
        async with session.get(
            URL(plan.via + one.target, encoded=True), headers=headers, allow_redirects=False
        ) as response:
            async for _ in response.content.iter_chunked(1 << 16):
                pass
            return result_of(response.status, response.headers.getall("Cache-Status", []))
    except TimeoutError:
        return FAILED, f"no answer within {plan.timeout:g} s"
    except aiohttp.ClientConnectorError:
        return FAILED, f"nothing answers at {plan.via}"
    except (aiohttp.ClientError, OSError, ValueError) as error:
        return FAILED, type(error).__name__


def result_of(status: int, said: Sequence[str]) -> tuple[str, str]:
    """What an answer tells of the cache, by its `Cache-Status` (RFC 9211)."""
    member = ", ".join(said).rpartition(",")[2].strip()
    name, _, parameters = member.partition(";")
    told = {part.strip().partition("=")[0] for part in parameters.split(";")} if name.strip() == NAME else set()
    if "hit" in told:
        return HIT, ""
    if not told.isdisjoint(("stored", "collapsed")):
        return STORED, ""
    if status >= 400:
        return FAILED, f"status {status}{', a rate limit: see --rate' if status == 429 else ''}"
    if not told:
        return NOT_CACHEABLE, "no cache in the route's chain"
    reason = _DETAIL.search(parameters) or _FORWARDED.search(parameters)
    return NOT_CACHEABLE, reason[1] if reason else "unknown"


# -- for people ------------------------------------------------------------------------------------


def progress_bar(*, hidden: bool) -> Progress:
    """A bar on standard error, where that is a terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Screen(stderr=True),
        transient=True,
        disable=hidden or not sys.stderr.isatty(),
    )


def print_summary(console: Console, summary: Summary) -> None:
    """How many of each, and why."""
    table = columns("result", "urls", "why", right=("urls",))
    for result in RESULTS:
        if result in (STORED, HIT) or summary.results[result]:
            why = [
                f"{reason} ({number(count)})" for (of, reason), count in summary.reasons.most_common() if of == result
            ]
            table.add_row(result, number(summary.results[result]), ", ".join(why))
    console.print(table)
    for url, reason in summary.failed:
        console.print(f"failed: {clean(url)}: {reason}")
    if summary.results[FAILED] > len(summary.failed):
        console.print(f"... and {number(summary.results[FAILED] - len(summary.failed))} more")
