from __future__ import annotations

import pytest

from gateway.doctor import access
from gateway.doctor.access import Way, way_of
from gateway.doctor.findings import Level
from gateway.doctor.rights import Lacking
from gateway.store.clients import make_client

CRITICAL, WARNING, UNKNOWN, OK = Level


@pytest.mark.parametrize(
    ("url", "way", "tls", "password"),
    [
        ("redis://127.0.0.1", Way(local=True, tls=False, verified=True, password=False), OK, OK),
        ("unix:///run/valkey.sock", Way(local=True, tls=False, verified=True, password=False), OK, OK),
        ("redis://db.example", Way(local=False, tls=False, verified=True, password=False), WARNING, WARNING),
        ("redis://u:p@db.example", Way(local=False, tls=False, verified=True, password=True), WARNING, OK),
        ("rediss://u:p@db.example", Way(local=False, tls=True, verified=True, password=True), OK, OK),
        (
            "rediss://u:p@db.example?ssl_cert_reqs=none",
            Way(local=False, tls=True, verified=False, password=True),
            WARNING,
            OK,
        ),
        (
            "rediss://u:p@db.example?ssl_server_name=other.example",
            Way(local=False, tls=True, verified=True, password=True),
            OK,
            OK,
        ),
    ],
)
def test_the_way_there(url, way, tls, password):
    client = make_client(url, 1.0, "")
    assert way_of(client) == way
    assert access.tls(way).level is tls
    assert access.password(way).level is password


def test_what_a_user_lacks_is_one_line_to_paste():
    finding = access.user_rights(Lacking(("client|tracking", "get"), ("shop:*",)), "gw")
    assert finding.level is CRITICAL
    assert finding.found == "gw may not run CLIENT TRACKING, GET, nor use shop:*"
    assert finding.hint == "ACL SETUSER gw ~shop:* +client|tracking +get"
    assert access.user_rights(Lacking(), "gw").level is OK


def test_many_are_named_in_the_line_only():
    finding = access.user_rights(Lacking(tuple(f"c{number}" for number in range(9))), "gw")
    assert finding.found.endswith("C4 and 4 more")
    assert finding.hint.endswith("+c8")
