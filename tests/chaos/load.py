"""The clients: about 200 requests a second to two gateways, in a mixture that needs all of Redis.

kind       path                asks Redis for                          whose
page       /users/{id}         blacklist, session, cached answer       each user's, with a session and a token
open       /open/{id}          a wide limit, cached answer             each API key's; no plugin on it must refuse
limited    /limited            a limit that is exceeded                one client's
token      /token              blacklist                               tokens, some of them revoked on the way
change     PUT of the first two                                        raises the version that the answers tell
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Literal

import aiohttp
import orjson
from aiohttp import web
from redis.exceptions import RedisError

from gateway.store.clients import make_async_client
from plugins.session.sessions import create_session_async
from tests.harness import listening_socket

Kind = Literal["page", "open", "limited", "token", "change"]

USERS = 10
TOKENS = 24
LIMIT = 40
PERIOD = 2.0
"""The limited client may make `LIMIT` requests in so many seconds."""
MAX_AGE = 2
"""Seconds for which an answer may be cached."""
PLUGINS: dict[str, dict[str, Any]] = {
    "blacklist": {"use": "token_blacklist"},
    "session": {},
    "wide": {"use": "rate_limit", "limits": ["100000/minute"], "by": "header:X-Api-Key"},
    "limit": {"use": "rate_limit", "limits": [f"{LIMIT}/{PERIOD:g}s"], "by": "header:X-Api-Key"},
    "cache": {"stale_if_error": 0},
}
ROUTES = [
    {"name": "page", "match": {"path": "/users/*"}, "plugins": ["blacklist", "session", "cache"]},
    {"name": "open", "match": {"path": "/open/*"}, "plugins": ["wide", "cache"]},
    {"name": "limited", "match": {"path": "/limited"}, "plugins": ["limit"]},
    {"name": "token", "match": {"path": "/token"}, "plugins": ["blacklist"]},
]
# A tenth of a second's requests; tokens come beside them.
MIX: tuple[Kind, ...] = ("page", "limited", "open", "limited", "page", "open", "limited", "page", "open", "limited")
MIX += ("page", "limited", "open", "page", "change")
BEAT = 0.1 / len(MIX)
REVOKE_EVERY = 0.4
TOUCH_EVERY = 1.0
# A revoked token is tried often at first, then now and then: it must not come back either.
TRIES = (*[0.025] * 20, *[0.25] * 60)
MAX_IN_FLIGHT = 2000
GIVE_UP = 10.0
HOST = "api.example"  # one site, whichever node is asked


@dataclass(slots=True)
class Sample:
    """One request and its answer.

    Attributes:
        status: 0 where there was no answer, or half of one.
        sent, took: seconds, by `time.monotonic`.
        version: what the answer says, and `known` what the client had been told before it asked.
        age: seconds since the API made the answer, when it was asked for.
    """

    kind: Kind
    who: str
    node: int
    sent: float
    took: float = 0.0
    status: int = 0
    owner: str = ""
    version: int = 0
    known: int = 0
    age: float = 0.0
    cache: str = ""
    error: str = ""


class Api:
    """What the gateways protect: tells whom it was asked for, the version of what he has, and when it was made."""

    def __init__(self) -> None:
        self.versions: dict[str, int] = {}
        self.url = ""
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application()
        app.router.add_route("*", "/{tail:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2)
        await self._runner.setup()
        listening = listening_socket()
        self.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        await web.SockSite(self._runner, listening).start()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        owner = request.headers.get("X-User-Id") or request.headers.get("X-Api-Key", "")
        if request.method == "PUT":
            self.versions[owner] = self.versions.get(owner, 0) + 1
        body = {"owner": owner, "version": self.versions.get(owner, 0), "made": time.monotonic()}
        return web.json_response(body, headers={"Cache-Control": f"private, max-age={MAX_AGE}"})


class Application:
    """Logs users in and revokes tokens, in Redis itself: it is not cut off when the gateways are."""

    def __init__(self, url: str) -> None:
        self._client = make_async_client(url, 0.5, "application")
        self._former: list[Any] = []

    def move(self, url: str) -> None:
        """Ask there from now on."""
        self._former.append(self._client)
        self._client = make_async_client(url, 0.5, "application")

    async def login(self, user: str) -> str:
        """A new session's id."""
        return await create_session_async(self._client, user)

    async def revoke(self, token: str) -> None:
        await self._client.set(self._key(token), "1", ex=600)

    async def knows(self, token: str) -> bool:
        """Whether Redis (still) knows that the token was revoked."""
        return bool(await self._client.exists(self._key(token)))

    @staticmethod
    def _key(token: str) -> str:
        return f"gateway:token:blacklist:{sha256(token.encode()).hexdigest()}"

    async def stop(self) -> None:
        for client in (*self._former, self._client):
            await client.aclose()


@dataclass
class Load:
    """All clients.

    Attributes:
        revoked: when Redis had acknowledged that a token is revoked, by token.
        changed: when a client was told of each version, by owner.
        lag: by how many seconds this process itself was late at worst.
    """

    nodes: Sequence[str]
    application: Application
    samples: list[Sample] = field(default_factory=list)
    revoked: dict[str, float] = field(default_factory=dict)
    changed: dict[str, list[float]] = field(default_factory=dict)
    lag: float = 0.0
    _sessions: dict[str, str] = field(default_factory=dict)
    _logging_in: set[str] = field(default_factory=set)
    _jobs: set[asyncio.Task[None]] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _http: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Load:
        self._http = aiohttp.ClientSession(
            cookie_jar=aiohttp.DummyCookieJar(),
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=GIVE_UP),
        )
        for number in range(USERS):
            user = f"u{number}"
            self._sessions[user] = await self.application.login(user)
        for job in (self._clients(), self._touch_tokens(), self._revoke_tokens()):
            self._spawn(job, self._jobs)
        return self

    async def finish(self) -> set[str]:
        """Ask nothing more, and wait for all answers; the revoked tokens of which Redis does not know any more."""
        for job in self._jobs:
            job.cancel()
        await asyncio.gather(*self._jobs, return_exceptions=True)
        while self._tasks:
            await asyncio.wait(self._tasks)
        return {token for token in self.revoked if not await self.application.knows(self.token_of(token))}

    async def __aexit__(self, *_: object) -> None:
        for task in (*self._jobs, *self._tasks):
            task.cancel()
        await asyncio.gather(*self._jobs, *self._tasks, return_exceptions=True)
        assert self._http is not None
        await self._http.close()

    @staticmethod
    def _spawn(job: Any, tasks: set[asyncio.Task[None]]) -> None:
        task = asyncio.get_running_loop().create_task(job)
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    # -- who asks when -----------------------------------------------------------------------------

    async def _clients(self) -> None:
        owners = {"page": self._turns("u"), "open": self._turns("k"), "change": self._changing()}
        nodes = {kind: itertools.cycle(range(len(self.nodes))) for kind in MIX}
        due = time.monotonic()
        for kind in itertools.cycle(MIX):
            due += BEAT
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            self.lag = max(self.lag, time.monotonic() - due)
            self._send(kind, next(owners[kind]) if kind in owners else "greedy", next(nodes[kind]))

    def _turns(self, letter: str) -> Iterator[str]:
        """Each of them meets each node."""
        for number in itertools.count():
            yield f"{letter}{number // len(self.nodes) % USERS}"

    def _changing(self) -> Iterator[str]:
        for number in itertools.count():
            yield f"{'uk'[number // len(self.nodes) % 2]}{number // (2 * len(self.nodes)) % USERS}"

    async def _touch_tokens(self) -> None:
        """Each token is in use on each node before it is revoked, so that the nodes know it as good."""
        while True:
            for number in range(TOKENS):
                if f"t{number}" not in self.revoked:
                    for node in range(len(self.nodes)):
                        self._send("token", f"t{number}", node)
                await asyncio.sleep(TOUCH_EVERY / TOKENS)

    async def _revoke_tokens(self) -> None:
        await asyncio.sleep(TOUCH_EVERY)
        for number in range(TOKENS):
            token = f"t{number}"
            while token not in self.revoked:
                with contextlib.suppress(RedisError, OSError):
                    await self.application.revoke(self.token_of(token))
                    self.revoked[token] = time.monotonic()
                await asyncio.sleep(0.05)
            self._spawn(self._try(token), self._jobs)
            await asyncio.sleep(REVOKE_EVERY - 0.05)

    async def _try(self, token: str) -> None:
        for pause in TRIES:
            for node in range(len(self.nodes)):
                self._send("token", token, node)
            await asyncio.sleep(pause)

    @staticmethod
    def token_of(name: str) -> str:
        return f"{name}-abcdefghijklmnopqrstuvwxyz"

    # -- one request -------------------------------------------------------------------------------

    def _send(self, kind: Kind, who: str, node: int) -> None:
        sample = Sample(kind, who, node, time.monotonic())
        self.samples.append(sample)
        if len(self._tasks) > MAX_IN_FLIGHT:
            sample.error = "too many requests in flight"
        else:
            self._spawn(self._request(sample), self._tasks)

    async def _request(self, sample: Sample) -> None:
        assert self._http is not None
        who, kind = sample.who, sample.kind
        path = {"limited": "/limited", "token": "/token"}.get(kind, f"/{'users' if who[0] == 'u' else 'open'}/{who}")
        if kind == "token":
            headers = {"Authorization": f"Bearer {self.token_of(who)}"}
        elif who[0] == "u":
            headers = {"Authorization": f"Bearer of-{who}", "Cookie": f"session={self._sessions[who]}"}
        else:
            headers = {"X-Api-Key": who}
        headers["Host"] = HOST
        sample.known = len(self.changed.get(who, ()))
        sample.sent = time.monotonic()
        method = "PUT" if kind == "change" else "GET"
        try:
            async with self._http.request(method, self.nodes[sample.node] + path, headers=headers) as answer:
                body = await answer.read()
                sample.took = time.monotonic() - sample.sent
                sample.status = answer.status
                sample.cache = answer.headers.get("X-Cache", "")
                if answer.status == 200:
                    self._read(sample, orjson.loads(body))
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            sample.took = time.monotonic() - sample.sent
            sample.error = f"{type(error).__name__} {error}".strip()
        if sample.status == 401 and who[0] == "u" and who not in self._logging_in:
            self._spawn(self._login(who), self._tasks)

    def _read(self, sample: Sample, answer: dict[str, Any]) -> None:
        sample.owner = answer["owner"]
        sample.version = answer["version"]
        sample.age = sample.sent - answer["made"]
        if sample.kind == "change":
            told = self.changed.setdefault(sample.who, [])
            # Each version up to this one is known from now on at the latest.
            told += [time.monotonic()] * (sample.version - len(told))

    async def _login(self, user: str) -> None:
        """What a user does who is told that his session is over."""
        self._logging_in.add(user)
        with contextlib.suppress(RedisError, OSError):
            self._sessions[user] = await self.application.login(user)
        self._logging_in.discard(user)
