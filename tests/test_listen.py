"""Addresses as people write them, and ports that are taken."""

from __future__ import annotations

import socket

import pytest

from gateway.listen import ONE_EACH, BindError, Listeners, has_ipv6


@pytest.mark.parametrize(
    ("address", "clients", "url"),
    [
        ("127.0.0.1:0", ["127.0.0.1"], "http://127.0.0.1:{}"),
        ("localhost:0", ["127.0.0.1"], "http://127.0.0.1:{}"),
        ("0.0.0.0:0", ["127.0.0.1"], "http://127.0.0.1:{}"),
        pytest.param("[::1]:0", ["::1"], "http://[::1]:{}", marks=pytest.mark.skipif(not has_ipv6(), reason="no IPv6")),
        pytest.param(
            ":0",
            ["127.0.0.1", "::1"],
            "http://127.0.0.1:{}",
            marks=pytest.mark.skipif(not has_ipv6(), reason="no IPv6"),
        ),
    ],
)
def test_each_form_of_address_can_be_connected_to(address: str, clients: list[str], url: str) -> None:
    listeners = Listeners(address)
    assert listeners.url == url.format(listeners.port)
    for client in clients:
        socket.create_connection((client, listeners.port), timeout=1).close()
    listeners.close()


def test_all_workers_have_the_same_port() -> None:
    listeners = Listeners("127.0.0.1:0")
    ports = {listeners.take(number).getsockname()[1] for number in range(4)}
    assert ports == {listeners.port}
    assert (listeners.take(0) is listeners.take(1)) is not ONE_EACH
    listeners.shrink(2)
    assert listeners.take(3).fileno() >= 0
    listeners.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", listeners.port), timeout=1)


@pytest.mark.parametrize("share", [False, True])
def test_a_taken_port_is_named_with_what_to_do(share: bool) -> None:
    with socket.socket() as other:
        if share:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(BindError, match=rf"server.listen: port {port} is in use already .* --listen HOST:PORT"):
            Listeners(f"127.0.0.1:{port}")
        with pytest.raises(BindError, match=r"admin.listen: .* --admin HOST:PORT, or GATEWAY_ADMIN_LISTEN"):
            Listeners(f"127.0.0.1:{port}", key="admin.listen")


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_an_address_of_another_machine(host: str) -> None:
    with pytest.raises(BindError, match=f"server.listen: .*{host}.* is not an address of this machine"):
        Listeners(f"{host}:8080")
