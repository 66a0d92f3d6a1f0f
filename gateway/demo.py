"""A small API to try the gateway on, and the curl lines that show it at work."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Final

import jwt
from aiohttp import web
from redis.exceptions import RedisError

from gateway.loader import built_in_modules
from gateway.store.clients import make_async_client

PRODUCTS: Final = (
    {"id": 1, "name": "Teapot", "price": 39.5},
    {"id": 2, "name": "Kettle", "price": 59.0},
    {"id": 3, "name": "Cup", "price": 7.25},
)
SLOW_SECONDS: Final = 2.0
REDIS_SECONDS: Final = 5.0
TOKEN_SECONDS: Final = 3600
MAX_USER: Final = 64
MAX_BODY: Final = 16 << 10
COOKIE: Final = "session"


@dataclass(frozen=True, slots=True)
class Line:
    """One command to try."""

    shows: str
    command: str


def curl_lines(base: str, gateway: str) -> list[Line]:
    """Five lines for bash, to be run one after the other.

    Args:
        base: the gateway's URL.
        gateway: how the shell calls the `gateway` command.
    """
    jar = '"${TMPDIR:-/tmp}/gateway-demo-cookies"'
    bearer = '-H "Authorization: Bearer $TOKEN"'
    me = f"curl -s -b {jar} {bearer} {base}/me; echo"
    return [
        Line(
            "cache: the second answer comes from the gateway (X-Cache: MISS, then HIT)",
            f"for i in 1 2; do curl -si {base}/products/1 | grep -i '^x-cache'; done",
        ),
        Line(
            "rate_limit: five searches in ten seconds are answered, the sixth and seventh are refused with 429",
            f"for i in 1 2 3 4 5 6 7; do curl -s -o /dev/null -w '%{{http_code}} ' '{base}/search?q=cup'; done; echo",
        ),
        Line(
            "session: the login's cookie lets you in, and the API behind is told who you are",
            f"TOKEN=$(curl -s -c {jar} -d user=ada {base}/login); {me}",
        ),
        Line(
            "token_blacklist: revoked here, refused by every gateway at once (401)",
            f'{gateway} token revoke "$TOKEN"; {me}',
        ),
        Line(
            "request_id, headers: an id that is in the access log too, and what [plugins.headers] sets; takes 2 s",
            f"curl -si {base}/slow | grep -iE '^(x-|via)'",
        ),
    ]


def bind() -> tuple[socket.socket, str]:
    """A listening socket on a free port of this machine, and its URL."""
    listening = socket.create_server(("127.0.0.1", 0))
    listening.setblocking(False)
    return listening, f"http://127.0.0.1:{listening.getsockname()[1]}"


@contextlib.asynccontextmanager
async def serve(listening: socket.socket, redis_url: Callable[[], str | None], prefix: str) -> AsyncIterator[None]:
    """Answer on this socket until the block ends.

    Args:
        listening: see `bind`.
        redis_url: where the login writes sessions; asked for at each login, as the embedded server may come later.
        prefix: the `prefix` of `[redis]`.
    """
    runner = web.AppRunner(make_app(redis_url, prefix), access_log=None, shutdown_timeout=SLOW_SECONDS + 1)
    await runner.setup()
    try:
        await web.SockSite(runner, listening).start()
        yield
    finally:
        await runner.cleanup()


def make_app(redis_url: Callable[[], str | None], prefix: str) -> web.Application:
    """The demo's API; see `serve`."""
    secret = secrets.token_bytes(32)

    async def products(request: web.Request) -> web.Response:
        return _cached(list(PRODUCTS), "products")

    async def product(request: web.Request) -> web.Response:
        for item in PRODUCTS:
            if str(item["id"]) == request.match_info["id"]:
                return _cached(item, f"products product-{item['id']}")
        return _json({"error": "no such product"}, 404)

    async def search(request: web.Request) -> web.Response:
        word = request.query.get("q", "").lower()
        return _json([item for item in PRODUCTS if word in str(item["name"]).lower()])

    async def me(request: web.Request) -> web.Response:
        user = request.headers.get("X-User-Id")
        return _json({"user": user} if user else {"error": "nobody told me who you are"}, 200 if user else 401)

    async def slow(request: web.Request) -> web.Response:
        await asyncio.sleep(SLOW_SECONDS)
        return _json({"slept": SLOW_SECONDS})

    async def login(request: web.Request) -> web.Response:
        form = await request.post()
        user = form.get("user")
        if not isinstance(user, str) or not 0 < len(user) <= MAX_USER or not user.isprintable():
            return _json({"error": f"send a form with user=NAME, of at most {MAX_USER} characters"}, 400)
        url = redis_url()
        if url is None:
            return _json({"error": "Redis is not there; try again shortly"}, 503)
        try:
            session = await _create_session(url, prefix, user)
        except (RedisError, OSError):
            return _json({"error": "Redis is not there; try again shortly"}, 503)
        now = int(time.time())
        claims = {"sub": user, "jti": secrets.token_hex(8), "iat": now, "exp": now + TOKEN_SECONDS}
        token = jwt.encode(claims, secret, algorithm="HS256")
        response = web.Response(text=token, content_type="application/jwt", headers={"Cache-Control": "no-store"})
        response.set_cookie(COOKIE, session, httponly=True, samesite="Lax", max_age=TOKEN_SECONDS)
        return response

    app = web.Application(client_max_size=MAX_BODY)
    app.router.add_get("/products", products)
    app.router.add_get("/products/{id}", product)
    app.router.add_get("/search", search)
    app.router.add_get("/me", me)
    app.router.add_get("/slow", slow)
    app.router.add_post("/login", login)
    return app


async def _create_session(url: str, prefix: str, user: str) -> str:
    session = built_in_modules()["session"]
    async with make_async_client(url, REDIS_SECONDS, "gateway-demo") as redis:
        return str(await session.create_session_async(redis, user, layout=session.Layout(prefix)))


def _cached(content: Any, tags: str) -> web.Response:
    return _json(content, headers={"Cache-Control": "public, max-age=60", "Cache-Tag": tags})


def _json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.json_response(content, status=status, headers={"Cache-Control": "no-store"} | (headers or {}))
