from __future__ import annotations

import asyncio
import base64
import json
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
import redis
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError
from typer.testing import CliRunner

from gateway.console import settings
from gateway.plugin import users_of
from gateway.store import Redis
from gateway.store.link import LinkOptions
from plugins.session import create_session_async
from plugins.token_blacklist import TokenBlacklist
from plugins.token_blacklist import plugin as module
from plugins.token_blacklist.commands import AlreadyExpired, Place, commands, revoke_token, status_of
from plugins.token_blacklist.tokens import Malformed, NotValid, bearer_of, claims_of, id_of, time_in
from tests.harness import eventually
from tests.requests import bare_request

SECRET = "a secret of at least thirty-two bytes"
DAY = 24 * 3600


def token_with(**claims: Any) -> str:
    return jwt.encode(claims, SECRET, algorithm="HS256")


def with_blacklist(**keys: Any) -> dict[str, Any]:
    return {"plugins": {"token_blacklist": keys}}


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def key_of(token: str) -> str:
    return f"gateway:token:blacklist:{id_of(token, claims_of(token))}"


async def status(http: Any, gw: Any, token: str) -> int:
    async with http.get(gw.url, headers=bearer(token)) as response:
        return response.status


@pytest.fixture
def sync_client(redis_url: str) -> Any:
    client = redis.Redis.from_url(redis_url)
    yield client
    client.close()


# -- revoked or not ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "token",
    [
        token_with(jti="id-1"),
        token_with(jti="\u2603 with spaces"),
        token_with(jti="x" * 300),
        token_with(jti=""),
        token_with(jti=7),
        token_with(sub="x"),
        "opaque",
        "a.b",
        "a.b.c",
        "x" * 3000,
    ],
)
async def test_refuses_a_revoked_token_and_no_other(gateway, upstream, http, redis_client, sync_client, token):
    gw = await gateway(with_blacklist(realm="shop"))
    assert await status(http, gw, token) == 200
    await asyncio.to_thread(revoke_token, sync_client, [Place(key_of(token), 0)], token, ttl=60, now=time.time())
    await eventually(lambda: len(gw.worker.redis.mirror) == 0)
    async with http.get(gw.url, headers=bearer(token)) as response:
        assert response.status == 401
        challenge = 'Bearer realm="shop", error="invalid_token", error_description="revoked"'
        assert response.headers["WWW-Authenticate"] == challenge
        assert response.content_type == "application/problem+json"
        assert json.loads(await response.read())["detail"] == "Revoked."
    assert await status(http, gw, "another") == 200
    assert all(len(key) < 320 for key in await redis_client.keys("*"))


async def test_a_token_in_use_costs_no_trip(gateway, http):
    gw = await gateway(with_blacklist())
    assert await status(http, gw, "opaque") == 200
    asked = gw.worker.redis.asked
    assert await status(http, gw, "opaque") == 200
    assert gw.worker.redis.asked == asked


async def test_what_an_application_writes_counts_whatever_its_type(gateway, http, redis_client):
    gw = await gateway(with_blacklist(key="app:revoked:{id}"))
    await redis_client.hset("app:revoked:abc", mapping={"by": "admin"})
    assert await status(http, gw, token_with(jti="abc")) == 401


APPLICATIONS_OWN = {"key": "app:revoked:{id}", "hash_ids": False}


@pytest.mark.parametrize("mirror", ["64 MiB", 0])
@pytest.mark.parametrize(
    ("token", "token_id"),
    [("opaque-._~+/=", None), ("x" * 1024, None), (token_with(sub="x"), None), (token_with(jti="id-1"), "id-1")],
)
async def test_shares_the_keys_of_an_application_with_plain_tokens(
    gateway, http, redis_client, token, token_id, mirror
):
    gw = await gateway({"redis": {"mirror": {"max_bytes": mirror}}, **with_blacklist(**APPLICATIONS_OWN)})
    assert await status(http, gw, token) == 200
    await redis_client.set(f"app:revoked:{token_id or token}", 1)

    async def refused() -> bool:
        return await status(http, gw, token) == 401

    await eventually(refused, within=1)
    assert await status(http, gw, "another") == 200


async def test_a_plain_token_that_is_too_long_is_refused_unseen(gateway, upstream, http):
    gw = await gateway(with_blacklist(**APPLICATIONS_OWN))
    asked = gw.worker.redis.asked
    async with http.get(gw.url, headers=bearer("x" * 1025)) as response:
        assert response.status == 401
        assert "at most 1024" in response.headers["WWW-Authenticate"]
    assert gw.worker.redis.asked == asked
    assert upstream.requests == []
    assert await status(http, gw, token_with(jti="id-1", scope="x" * 2000)) == 200, "it has a short id"


async def test_no_spelling_of_a_plain_token_is_a_way_out(gateway, http, redis_client):
    signed, encrypted = token_with(sub="alice"), "eyJhbGciOiJkaXIifQ..AAAA.AAAA.AA"
    # The last of its characters has two bits without meaning: 0 as it was issued, here 1.
    respelled = signed[:-1] + chr(ord(signed[-1]) + 1)
    signatures = [token.rpartition(".")[2] + "=" for token in (signed, respelled)]
    assert base64.urlsafe_b64decode(signatures[0]) == base64.urlsafe_b64decode(signatures[1]), (
        "many upstreams take both"
    )
    gw = await gateway(with_blacklist(**APPLICATIONS_OWN))
    for token in (signed, encrypted, "a1.b2.c3.d4.ef"):
        await redis_client.set(f"app:revoked:{token}", 1)
    for token in (signed, signed + "=", respelled, encrypted, encrypted + "==", encrypted[:-1] + "B", "a1.b2.c3.d4.ef"):
        assert await status(http, gw, token) == 401, token


async def test_another_spelling_of_the_signature_is_no_way_out(gateway, http, sync_client):
    token = token_with(sub="alice")
    assert jwt.decode(token + "=", SECRET, algorithms=["HS256"]) == {"sub": "alice"}
    encrypted = "eyJhbGciOiJkaXIifQ..AAAA.AAAA.AAAA"
    gw = await gateway(with_blacklist())
    for one in (token, encrypted):
        await asyncio.to_thread(revoke_token, sync_client, [Place(key_of(one), 0)], one, ttl=60, now=time.time())
        assert await status(http, gw, one + "=") == 401


@pytest.mark.parametrize(
    "headers",
    [
        [("Authorization", "Bearer one"), ("Authorization", "Bearer two")],
        [("Authorization", "Basic eA=="), ("Authorization", "bearer two")],
        [("Authorization", "Bearer one two")],
        [("Authorization", "Bearer\tone")],
        [("Authorization", "Bearer")],
        [("Authorization", "Basic eA==, Bearer one")],
        [("Authorization", 'Bearer "one"')],
    ],
)
async def test_a_token_that_others_may_read_differently_is_not_passed_on(gateway, upstream, http, headers):
    gw = await gateway(with_blacklist())
    async with http.get(gw.url, headers=headers) as response:
        assert response.status == 400
        assert 'error="invalid_request"' in response.headers["WWW-Authenticate"]
    assert upstream.requests == []


async def test_without_a_token(gateway, upstream, http):
    lenient, strict = await gateway(with_blacklist()), await gateway(with_blacklist(required=True))
    for headers in ({}, {"Authorization": "Basic YmVhcmVyOng="}):
        async with http.get(lenient.url, headers=headers) as response:
            assert response.status == 200
        async with http.get(strict.url, headers=headers) as response:
            assert response.status == 401
            assert response.headers["WWW-Authenticate"] == 'Bearer realm="gateway"'
    assert len(upstream.requests) == 2


async def test_redis_down(gateway, upstream, http, own_valkey):
    refuse = await gateway({"redis": {"url": own_valkey.url}, **with_blacklist()})
    lenient = await gateway({"redis": {"url": own_valkey.url}, **with_blacklist(on_redis_failure="pass")})
    own_valkey.kill()
    await eventually(lambda: not refuse.worker.redis.up and not lenient.worker.redis.up)
    async with http.get(refuse.url, headers=bearer("opaque")) as response:
        assert response.status == 503
        assert "Retry-After" in response.headers
    async with http.get(refuse.url) as response:
        assert response.status == 200, "no token needs no Redis"
    assert await status(http, lenient, "opaque") == 200


async def test_a_revocation_reaches_the_other_node_within_50_ms(gateway, http, run):
    one, two = await gateway(with_blacklist()), await gateway(with_blacklist())
    took = []
    # The best of five: everything here shares two busy cores, and what is to be shown is that nothing waits.
    for number in range(5):
        token = token_with(jti=f"id-{number}", exp=int(time.time()) + 600)
        for node in (one, two):
            assert await status(http, node, token) == 200
        hits = two.worker.redis.mirror.hits
        assert await status(http, two, token) == 200
        assert two.worker.redis.mirror.hits == hits + 1, "it holds the answer in memory"
        result = await asyncio.to_thread(run, "revoke", token)
        start = time.perf_counter()
        assert result.exit_code == 0, result.output
        while await status(http, two, token) != 401:
            assert time.perf_counter() - start < 2
        took.append(time.perf_counter() - start)
    assert min(took) < 0.05


# -- verified ----------------------------------------------------------------------------------

PROBE = """
from gateway.plugin import Plugin

class Probe(Plugin):
    def ask(self, request, redis):
        request.state["probe"] = f"{request.identity} {request.identity_pending}"

    async def __call__(self, request, call_next):
        response = await call_next(request)
        response.set("X-In-Ask", request.state["probe"])
        response.set("X-In-Call", f"{request.identity} {request.user} {request.token is not None}")
        return response
"""


@pytest.fixture
def probe(tmp_path: Path) -> Path:
    (tmp_path / "token_probe.py").write_text(PROBE)
    return tmp_path


async def test_sub_is_the_user_only_if_the_signature_was_verified(gateway, http, probe):
    token = token_with(sub="alice")
    for keys, in_ask, in_call in (
        ({}, "None False", "None None True"),
        ({"secret": SECRET}, "alice False", "alice alice True"),
    ):
        plugins = {"token_blacklist": keys, "probe": {"use": "token_probe:Probe"}}
        gw = await gateway({"plugins": plugins}, folder=probe)
        for _ in range(2):
            async with http.get(gw.url, headers=bearer(token)) as response:
                assert response.status == 200
                assert response.headers["X-In-Ask"] == in_ask
                assert response.headers["X-In-Call"] == in_call


@pytest.mark.parametrize("order", [("session", "token_blacklist"), ("token_blacklist", "session")])
async def test_of_two_that_know_the_user_the_later_one_decides(gateway, http, redis_client, probe, order):
    tables = {"session": {"required": False, "sources": ["cookie"]}, "token_blacklist": {"secret": SECRET}}
    plugins = {name: tables[name] for name in order} | {"probe": {"use": "token_probe:Probe"}}
    gw = await gateway({"plugins": plugins}, folder=probe)
    session = await create_session_async(redis_client, "of-session")
    both = {**bearer(token_with(sub="of-token")), "Cookie": f"session={session}"}
    expected = "of-token" if order[-1] == "token_blacklist" else "of-session"
    for _ in range(2):
        async with http.get(gw.url, headers=both) as response:
            identity, user, _ = response.headers["X-In-Call"].split()
            assert user == expected
            # What is made for such a request is for neither of them alone.
            assert users_of(identity) == ["of-session", "of-token"]
    async with http.get(gw.url, headers={"Cookie": f"session={session}"}) as response:
        assert response.headers["X-In-Call"].split()[0] == "of-session"
    async with http.get(gw.url, headers=bearer(token_with(sub="of-token"))) as response:
        assert response.headers["X-In-Call"].split()[0] == "of-token"


NOW = int(time.time())


@pytest.mark.parametrize(
    ("token", "status_code", "why"),
    [
        (token_with(exp=NOW + 600, aud="shop", iss="me"), 200, ""),
        (token_with(exp=NOW - 600, aud="shop", iss="me"), 401, "has expired"),
        (token_with(nbf=NOW + 600, aud="shop", iss="me"), 401, "not valid yet"),
        (token_with(exp="soon", aud="shop", iss="me"), 401, "is not valid"),
        (token_with(aud="other", iss="me"), 401, "is not valid"),
        (token_with(aud="shop", iss="other"), 401, "is not valid"),
        (token_with(iss="me"), 401, "is not valid"),
        (jwt.encode({"aud": "shop", "iss": "me"}, "x" * 40, algorithm="HS256"), 401, "is not valid"),
        (jwt.encode({"aud": "shop", "iss": "me"}, SECRET * 2, algorithm="HS512"), 401, "is not valid"),
        (jwt.encode({"aud": "shop", "iss": "me"}, None, algorithm="none"), 401, "is not valid"),
        ("opaque", 401, "is not valid"),
    ],
)
async def test_verifies_signature_and_claims(gateway, upstream, http, token, status_code, why):
    gw = await gateway(with_blacklist(secret=SECRET, audience=["shop"], issuer="me"))
    async with http.get(gw.url, headers=bearer(token)) as response:
        assert response.status == status_code
        if status_code != 200:
            assert why in response.headers["WWW-Authenticate"]
    assert len(upstream.requests) == (status_code == 200)


async def test_a_token_that_was_verified_still_expires(gateway, http):
    gw = await gateway(with_blacklist(secret=SECRET, leeway="5s"))
    token = token_with(exp=NOW + 60)
    for later, expected in ((0, 200), (64, 200), (66, 401), (0, 200)):
        gw.plugins["token_blacklist"].clock = lambda later=later: NOW + later
        assert await status(http, gw, token) == expected, later


async def test_a_public_key_verifies(gateway, http):
    private = ec.generate_private_key(ec.SECP256R1())
    pem = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    gw = await gateway(with_blacklist(public_key=pem, algorithms=["ES256"]))
    assert await status(http, gw, jwt.encode({"sub": "alice"}, private, algorithm="ES256")) == 200
    assert await status(http, gw, jwt.encode({"sub": "alice"}, pem.replace("-", "x"), algorithm="HS256")) == 401


async def test_a_token_is_verified_once_and_few_are_remembered(gateway, http, monkeypatch):
    monkeypatch.setattr(module, "MAX_KNOWN_TOKENS", 3)
    gw = await gateway(with_blacklist(secret=SECRET))
    plugin = gw.plugins["token_blacklist"]
    token = token_with(sub="alice")
    for _ in range(2):
        assert await status(http, gw, token) == 200
    assert len(plugin._known) == 1
    for number in range(10):
        assert await status(http, gw, token_with(sub=f"user-{number}")) == 200
        assert await status(http, gw, f"forged-{number}") == 401
    assert len(plugin._known) == 3
    assert all(seen.user is not None for seen in plugin._known.values()), "what is not valid takes no place"


# -- configuration -----------------------------------------------------------------------------

RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
WEAK = rsa.generate_private_key(public_exponent=65537, key_size=1024)


def pem_of(key: Any) -> str:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"secret": "short"}, "too weak for HS256"),
        ({"secret": SECRET, "algorithms": ["RS256"]}, "with secret, algorithms are HS256"),
        ({"secret": SECRET, "public_key": pem_of(RSA)}, "not both"),
        ({"public_key": pem_of(RSA)}, "needs algorithms"),
        ({"public_key": pem_of(RSA), "algorithms": ["HS256"]}, "as a secret"),
        ({"public_key": pem_of(RSA), "algorithms": ["ES256"]}, "does not fit ES256"),
        ({"public_key": pem_of(WEAK), "algorithms": ["RS256"]}, "too weak for RS256"),
        ({"public_key": "nonsense", "algorithms": ["RS256"]}, "does not fit RS256"),
        (
            {
                "public_key": RSA.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
                "algorithms": ["RS256"],
            },
            "is a private key",
        ),
        ({"algorithms": ["none"]}, "HS256"),
        ({"audience": ["shop"]}, "only checked with"),
        ({"key": "{id}"}, "any key"),
    ],
)
def test_a_wrong_configuration_says_why(keys, message):
    with pytest.raises(ValidationError, match=message):
        TokenBlacklist.Config.model_validate(keys)


def test_the_secret_is_not_shown():
    assert SECRET not in repr(TokenBlacklist.Config.model_validate({"secret": SECRET}))


# -- commands ----------------------------------------------------------------------------------


@pytest.fixture
def run(redis_url: str, monkeypatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(settings, "redis", redis_url)
    monkeypatch.setattr(settings, "config", None)
    return lambda *arguments, stdin=None: CliRunner().invoke(commands, list(arguments), input=stdin)


async def test_a_revocation_lasts_as_long_as_the_token(run, redis_client):
    token = token_with(jti="abc", exp=int(time.time()) + 600)
    assert "revoked  no" in run("status", token).output
    assert run("revoke", token).output.startswith("Revoked until 20")
    assert 590 < await redis_client.ttl("gateway:token:blacklist:abc") <= 600
    assert "revoked  yes, until 20" in run("status", token).output
    assert run("revoke", "-", stdin=f"Bearer {token_with(sub='x')}\n").exit_code == 0
    assert run("revoke", "opaque", "--ttl", "2h").exit_code == 0
    assert "revoked  yes" in run("status", "opaque").output
    lasting = sorted([await redis_client.ttl(key) for key in await redis_client.keys("*")])
    assert len(lasting) == 3
    assert 7190 < lasting[1] <= 7200
    assert DAY - 10 < lasting[2] <= DAY


async def test_what_has_expired_is_not_revoked(run, redis_client):
    result = run("revoke", token_with(exp=NOW - 5))
    assert result.exit_code == 1
    assert "there is nothing to revoke" in result.output
    assert await redis_client.keys("*") == []


@pytest.mark.parametrize(
    "arguments",
    [("two words",), ("",), ("\x07",), ("x", "--ttl", "soon"), ("x", "--ttl", "0"), ("x", "--ttl", "99999d")],
)
async def test_commands_refuse_nonsense(run, redis_client, arguments):
    assert run("revoke", *arguments).exit_code in (1, 2)
    assert await redis_client.keys("*") == []


async def test_commands_use_the_keys_of_the_configuration(run, redis_client, tmp_path: Path):
    table = (
        '[redis]\nprefix = "shop"\n[plugins.tokens]\nuse = "token_blacklist"\nkey = "{prefix}:bl:{id}"\nleeway = 100\n'
    )
    (tmp_path / "config.toml").write_text(table)
    assert run("revoke", token_with(jti="abc", exp=int(time.time()) - 5)).exit_code == 0
    assert 85 < await redis_client.ttl("shop:bl:abc") <= 95


async def test_commands_hash_no_token_where_the_configuration_says_so(run, redis_client, tmp_path: Path):
    (tmp_path / "config.toml").write_text('[plugins.token_blacklist]\nkey = "token:blacklist:{id}"\nhash_ids = false\n')
    assert run("revoke", "opaque").exit_code == 0
    assert await redis_client.keys("*") == [b"token:blacklist:opaque"]
    assert "revoked  yes" in run("status", "opaque").output
    for command in ("revoke", "status"):
        for token in ("x" * 1025, 'a"b', "a*b"):
            result = run(command, token)
            assert result.exit_code == 1
            assert "at most 1024" in result.output
    assert await redis_client.keys("*") == [b"token:blacklist:opaque"]


@pytest.mark.parametrize("expires", [1e300, 10**18, 253402300800])
def test_no_end_is_too_far_away(sync_client, expires):
    token = token_with(exp=expires)
    lasting = revoke_token(sync_client, [Place("k", 0)], token, ttl=60, now=time.time())
    assert 0 < sync_client.ttl("k") <= lasting
    assert status_of(sync_client, [Place("k", 0)], token).revoked


def test_what_stays_revoked_for_ever_is_told(sync_client, run):
    sync_client.set(key_of("opaque"), 1)
    assert "revoked  yes, for ever" in run("status", "opaque").output


# -- garbage -----------------------------------------------------------------------------------

PART = st.text("abcXYZ019-_=.~+/", max_size=40) | st.binary(max_size=40).map(
    lambda raw: base64.urlsafe_b64encode(raw).decode().rstrip("=")
)
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["jti", "exp", "sub", "x"]), inner),
    max_leaves=8,
)
ENCODED = JSON.map(lambda value: base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("="))
TOKENS = st.lists(PART | ENCODED, min_size=1, max_size=5).map(".".join)
DEEP = base64.urlsafe_b64encode(b"[" * 6000).decode().rstrip("=")


@given(TOKENS)
@example(f"{DEEP}.{DEEP}.x")
@example(f"eyJhbGciOiJIUzI1NiJ9.{base64.urlsafe_b64encode(b'9' * 5000).decode()}.x")
async def test_no_token_makes_ask_raise(token):
    never_connected = Redis(LinkOptions("redis://127.0.0.1:1"))
    for keys in ({}, {"secret": SECRET}, {"hash_ids": False}):
        plugin = TokenBlacklist(TokenBlacklist.Config.model_validate(keys), "token")
        request = bare_request(headers={"Authorization": f"Bearer {token}"})
        plugin.ask(request, never_connected)
        assert request.user is None, "nobody but the issuer names a user"


@given(TOKENS)
def test_an_id_is_always_bounded_and_fit_for_a_key(token):
    claims = claims_of(token)
    for hashed, most in ((True, 256), (False, 1024)):
        try:
            token_id = id_of(token, claims, hashed=hashed)
        except NotValid:
            assert not hashed
            continue
        assert 0 < len(token_id) <= most
        assert token_id.isascii()
        assert token_id.isprintable()
        assert " " not in token_id
    time_in(claims, "exp")


@given(st.lists(st.text(max_size=30) | st.sampled_from(["Bearer x", "bearer  x=", "Basic x"]), max_size=3))
def test_a_bearer_is_a_token_or_nothing(fields):
    try:
        token = bearer_of(fields)
    except Malformed:
        return
    assert token is None or (len(fields) == 1 and fields[0].endswith((token, " ")))


def test_expired_says_when():
    with pytest.raises(AlreadyExpired) as caught:
        revoke_token(redis.Redis(), [Place("k", 0)], token_with(exp=100), ttl=60, now=200)
    assert caught.value.when == 100
