"""Connections to an upstream: TLS, and what the pool does where no gateway is needed to see it."""

from __future__ import annotations

import datetime
import ssl

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from gateway import config
from gateway.upstream.forward import Upstream
from tests.harness import eventually
from tests.upstream.conftest import Front
from tests.upstream.raw import OK, answering, bare_request, exchange, lines_of, raw_upstream

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
