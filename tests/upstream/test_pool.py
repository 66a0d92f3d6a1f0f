"""Connections to an upstream: TLS, and what the pool does where no gateway is needed to see it."""

from __future__ import annotations

import asyncio
import datetime
import ssl

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from gateway import config
from gateway.upstream.forward import Upstream
from gateway.upstream.pool import Pool, Slots
from tests.harness import eventually, free_port
from tests.requests import bare_request
from tests.upstream.conftest import Front
from tests.upstream.raw import OK, Conversation, answering, exchange, lines_of, raw_upstream

GET = b"GET /s HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n"


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    """A server's TLS with a certificate that nobody has signed; `tls.names` has the names clients asked for."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    file = tmp_path_factory.mktemp("tls") / "server.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(file)
    context.names = []
    context.sni_callback = lambda _, asked, __: context.names.append(asked)
    return context


async def test_an_https_upstream_is_spoken_to_by_its_own_name(front: Front, tls):
    tls.names.clear()
    gateway, raw = await front(answering(OK), tls=tls, upstream={"verify_tls": False})
    for _ in range(2):
        head, body = await exchange(gateway.port, GET)
        assert head.startswith(b"HTTP/1.1 200")
        assert body == b"ok"
    assert tls.names == ["localhost"], "one handshake for both"
    assert b"Host: a.example" in lines_of(raw.heads[0])
    assert b"X-Forwarded-Proto: http" in lines_of(raw.heads[0]), "how the client came, not how we go on"


async def test_a_certificate_that_nobody_signed_is_502(front: Front, tls, caplog):
    gateway, raw = await front(answering(OK), tls=tls)
    head, body = await exchange(gateway.port, GET)
    assert head.startswith(b"HTTP/1.1 502")
    assert b"certificate" not in body
    assert raw.heads == [], "nothing was sent to it"
    assert "certificate" in caplog.text


async def test_a_large_body_streams_over_tls(front: Front, tls):
    big = b"HTTP/1.1 200 OK\r\nContent-Length: 3000000\r\n\r\n" + bytes(3_000_000)
    gateway, _ = await front(answering(big), tls=tls, upstream={"verify_tls": False})
    assert len((await exchange(gateway.port, GET))[1]) == 3_000_000


async def test_a_tunnel_runs_over_tls_and_ends_with_either_side(front: Front, tls):
    from tests.upstream.raw import raw_client
    from tests.upstream.test_tunnel import ASK, echo

    gateway, raw = await front(echo, tls=tls, upstream={"verify_tls": False})
    async with raw_client(gateway.port) as (reader, writer):
        writer.write(ASK)
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"secret")
        assert await reader.readexactly(6) == b"secret"
    await eventually(raw.lost.is_set)


def table(raw, **more):
    return config.Upstream(url=raw.url, **more)


def plain_request():
    return bare_request(headers=((b"Host", b"a"),))


async def test_stop_closes_idle_connections():
    async with raw_upstream(answering(OK)) as raw:
        upstream = Upstream("api", config.Upstream(url=raw.url))
        await upstream.start()
        response = await upstream(bare_request(headers=((b"Host", b"a"),)))
        assert (response.status, response.body) == (200, b"ok")
        assert repr(upstream) == f"<Upstream api {raw.url}, 1 connections>"
        await upstream.stop()
        await eventually(raw.lost.is_set)
        assert upstream.connections == 0


async def test_an_answer_that_is_not_wanted_closes_its_connection():
    big = b"HTTP/1.1 200 OK\r\nContent-Length: 3000000\r\n\r\n"
    async with raw_upstream(answering(big + bytes(1000))) as raw:
        upstream = Upstream("api", config.Upstream(url=raw.url))
        response = await upstream(bare_request(headers=((b"Host", b"a"),)))
        assert response.length == 3_000_000
        await response.body.aclose()
        await eventually(lambda: upstream.connections == 0)
        assert [piece async for piece in response.body] == []
        await upstream.stop()


async def test_the_connection_used_last_is_used_next_and_the_others_grow_old_and_are_closed():
    async with raw_upstream(answering(OK)) as raw:
        pool = Pool(table(raw, keepalive_timeout=0.2), b"", lambda: None)
        first, second, third = [await pool.acquire() for _ in range(3)]
        for connection in (first, second, third):
            pool.give_back(connection, usable=True)
        assert pool.take() is third
        pool.give_back(third, usable=True)

        async def use_third():
            connection = pool.take()
            pool.give_back(connection, usable=True)
            assert connection is third
            return pool.open == 1

        await eventually(use_third)
        await eventually(lambda: pool.open == 0)
        assert pool.take() is None
        await pool.close()


async def test_a_connection_that_the_upstream_has_closed_is_not_given_out():
    async with raw_upstream(answering(b"")) as raw:
        pool = Pool(table(raw), b"", lambda: None)
        connections = [await pool.acquire() for _ in range(2)]
        for connection in connections:
            pool.give_back(connection, usable=True)
        connections[1].transport.close()
        assert pool.take() is connections[0]
        assert pool.take() is None
        connections[0].discard()
        await eventually(lambda: pool.open == 0)
        await pool.close()


async def test_without_keepalive_each_request_has_a_connection_of_its_own():
    async with raw_upstream(answering(OK)) as raw:
        upstream = Upstream("api", table(raw, keepalive_timeout=0))
        for _ in range(3):
            assert (await upstream(plain_request())).body == b"ok"
        assert raw.connections == 3
        await upstream.stop()


async def test_who_waits_for_a_connection_is_served_in_turn_and_nobody_comes_in_between():
    order = []

    async def talk(peer: Conversation):
        while True:
            order.append((await peer.head()).split(b" ", 2)[1])
            await asyncio.sleep(0.002)
            await peer.send(OK)

    async with raw_upstream(talk) as raw:
        upstream = Upstream("api", table(raw, max_connections=2))
        waiting = []
        for number in range(20):
            request = bare_request(target=f"/{number:02}", headers=((b"Host", b"a"),))
            assert number < 2 or upstream.begin(request) is None
            waiting.append(asyncio.create_task(upstream(request)))
            await asyncio.sleep(0)
        for response in await asyncio.gather(*waiting):
            assert response.body == b"ok"
        assert raw.connections == 2
        pairs = [sorted(order[index : index + 2]) for index in range(2, 20, 2)]
        assert pairs == [[b"/%02d" % index, b"/%02d" % (index + 1)] for index in range(2, 20, 2)]
        await upstream.stop()


@given(st.lists(st.sampled_from(["take", "give back", "cancel", "cancel first"]), max_size=40), st.integers(1, 3))
def test_places_are_neither_lost_nor_made(steps, limit):
    async def main():
        slots = Slots(limit)
        takers: list[asyncio.Task] = []
        held = 0

        async def settle():
            nonlocal held
            for _ in range(3):
                await asyncio.sleep(0)
            done = [task for task in takers if task.done()]
            held += sum(not task.cancelled() for task in done)
            takers[:] = [task for task in takers if not task.done()]
            assert held <= limit
            assert held == limit or not takers, "nobody waits while there is room"

        for step in steps:
            if step == "take":
                takers.append(asyncio.create_task(slots.take()))
            elif step == "give back" and held:
                held -= 1
                slots.give_back()
                if len(steps) % 2 and takers:
                    takers[0].cancel()  # its place is given to it in the same moment
            elif takers:
                takers[0 if step == "cancel first" else -1].cancel()
            await settle()
        for task in takers:
            task.cancel()
        await settle()
        assert slots.free == limit - held

    asyncio.run(main())


async def test_a_new_connection_that_fails_frees_its_place():
    upstream = Upstream("api", config.Upstream(url=f"http://127.0.0.1:{free_port()}", max_connections=1))
    for _ in range(3):
        assert (await upstream(plain_request())).status == 502
    await upstream.stop()


async def test_requests_of_one_turn_of_the_loop_are_sent_together():
    """Each write of its own wakes the upstream; many in a row wake it once."""
    async with raw_upstream(answering(OK)) as raw:
        upstream = Upstream("api", table(raw))
        await asyncio.gather(*[upstream(plain_request()) for _ in range(5)])
        asked = [upstream.begin(plain_request()) for _ in range(5)]
        assert len(raw.heads) == 5
        assert [(await one).body for one in asked] == [b"ok"] * 5
        assert (len(raw.heads), raw.connections) == (10, 5)
        await upstream.stop()
