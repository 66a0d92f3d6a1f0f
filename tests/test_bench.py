"""The bench measures what its rows say."""

from __future__ import annotations

import http.client
import itertools
import json
import math
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
import redis

from bench.__main__ import NAMES, chosen
from bench.compare import Result, run
from bench.lab import Lab, config_text
from bench.load import Load, Round
from bench.report import Finding, cells, markdown, write
from bench.rows import ON, SECTIONS, Contract, Gateway, Work
from bench.servers.delay import relay
from bench.stalls import share
from bench.zipf import hits, ideal, rates
from gateway.config import load
from gateway.loader import load_plugins
from gateway.store.mirror import Mirror

ROWS = [work for works in SECTIONS.values() for work in works]
QUIET: Round = {"rps": 100.0, "p50": 1.0, "p99": 2.0, "max": 9.0, "cpu": 10.0, "redis_cpu": 1.0}
QUIET |= {"trips": 1.0, "requests": 100.0, "bad": 0.0, "foreign": 0.0}


@pytest.fixture(scope="module")
def here() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


def result(contract: Contract, *rounds: tuple[Round, Round]) -> Result:
    work = Work("a row", Load("/cached/1k"), "constant", contract=contract)
    return Result(work, [ours for ours, _ in rounds], [theirs for _, theirs in rounds])


def test_a_ratio_is_taken_inside_a_round() -> None:
    # The machine was three times as fast in the second round: the ratio of the medians would be 2.
    found = result(
        Contract(),
        (QUIET | {"rps": 100}, QUIET | {"rps": 100}),
        (QUIET | {"rps": 300}, QUIET | {"rps": 300}),
        (QUIET | {"rps": 200}, QUIET | {"rps": 50}),
    )
    assert found.ratio("rps") == 1


@pytest.mark.parametrize(
    ("contract", "ours", "met"),
    [
        (Contract(), {}, None),
        (Contract(ratio=2.0), {"rps": 200.0}, True),
        (Contract(ratio=2.0), {"rps": 199.0}, False),
        (Contract(ratio=2.0), {"rps": 199.0, "cpu": 5.1}, False),
        (Contract(ratio=2.0), {"rps": 199.0, "cpu": 5.0}, True),
        (Contract(ratio=2.0), {"rps": 300.0, "bad": 1.0}, False),
        (Contract(trips=1.0), {"trips": 1.004}, True),
        (Contract(trips=1.0), {"trips": 1.01}, False),
        (Contract(ratio=2.0, trips=1.0), {"rps": 300.0, "trips": 3.0}, False),
        (Contract(tail=3.0), {"p50": 10.0, "p99": 29.0}, True),
        (Contract(tail=3.0), {"p50": 10.0, "p99": 30.0}, False),
    ],
)
def test_a_contract_is_met_or_not(contract: Contract, ours: Round, met: bool | None) -> None:
    found = result(contract, (QUIET | ours, QUIET))
    assert found.met() is met
    assert ("NOT met" in cells(found)[-2]) is (met is False)


def test_a_disturbed_round_is_told() -> None:
    found = result(Contract(), (QUIET | {"foreign": 0.5}, QUIET), (QUIET, QUIET))
    assert "1 of 4 disturbed" in cells(found)[-1]
    assert "1 of 4 measurements were disturbed" in markdown({"Work": [found]}, [], {})


def test_rounds_that_were_disturbed_least_are_kept() -> None:
    busy, busier = QUIET | {"foreign": 0.3}, QUIET | {"foreign": 0.5}
    found = result(Contract(), (QUIET, busier), (busy, QUIET), (QUIET, QUIET))
    found.keep(2)
    assert [found.gateway, found.baseline] == [[QUIET, busy], [QUIET, QUIET]]
    assert found.dropped == [(QUIET, busier)]


def test_the_report_has_every_round(tmp_path: Path) -> None:
    found = result(Contract(1.0), (QUIET, QUIET), (QUIET, QUIET))
    text = write(
        tmp_path, {"Work": [found]}, [Finding("memory", "1 MiB", True, "< 2 MiB", {"rss": 1.0})], {"rounds": 2}
    )
    assert "| a row | 100 |" in text
    assert "| memory | 1 MiB | met (< 2 MiB) |" in (tmp_path / "bench.md").read_text()
    said = json.loads((tmp_path / "bench.json").read_text())
    assert said["sections"]["Work"][0]["rounds"]["gateway"] == [QUIET, QUIET]
    assert said["memory"][0]["rss"] == 1.0


def test_rows_have_names_of_their_own_that_only_can_pick() -> None:
    names = [work.name for work in ROWS]
    assert len(set(names)) == len(names)
    assert not [name for name in names if "," in name]
    assert [name for name in NAMES if chosen(name, "chain mirror on")] == ["chain mirror on"]
    assert len([name for name in NAMES if chosen(name, "chain mirror,POST 10 KB")]) > 5
    assert [name for name in NAMES if chosen(name, "")] == NAMES


def test_all_gateways_have_a_valid_configuration(tmp_path: Path) -> None:
    environment = {"BENCH_REDIS": "redis://127.0.0.1:1", "BENCH_UPSTREAM": "http://127.0.0.1:1"}
    path = tmp_path / "config.toml"
    for gateway in {side for work in ROWS for side in (work.gateway, work.baseline) if isinstance(side, Gateway)}:
        path.write_text(config_text(gateway))
        config = load(path, environment=environment | {"BENCH_MIRROR": gateway.mirror})
        assert load_plugins(config, tmp_path)
        assert len(config.routes) >= gateway.routes


def test_a_share_of_the_samples_is_told_by_the_bound_they_kept_to() -> None:
    buckets = {0.002: 990.0, 0.003: 998.0, 0.005: 999.0, math.inf: 1000.0}
    assert [share(buckets, part) for part in (0.5, 0.99, 0.995, 0.999, 1)] == [0.002, 0.002, 0.003, 0.005, math.inf]


def test_zipf_knows_what_is_ideal() -> None:
    # Of ten keys the first has 1 / (1 + 1/2 + ... + 1/10) of all reads.
    assert ideal(1, 10) == pytest.approx(0.3414, abs=1e-4)
    assert ideal(10, 10) == 1
    assert hits(Mirror(1 << 20), [1, 2, 1, 1, 3, 2]) == 3
    found = rates(256 << 10)
    assert found["keys"] == 10 * found["held"]
    assert 0 < found["alone"] <= found["ideal"] * 1.02
    assert found["after_scan"] <= found["alone"] + 0.1


def test_the_relay_holds_each_reply() -> None:
    with socket.create_server(("127.0.0.1", 0)) as far, socket.create_server(("127.0.0.1", 0)) as near:

        def echo() -> None:
            server, _ = far.accept()
            with server:
                while data := server.recv(1 << 16):
                    server.sendall(data)

        threading.Thread(target=echo, daemon=True).start()
        with socket.create_connection(near.getsockname()) as client:
            accepted, _ = near.accept()
            relay(accepted, far.getsockname()[1], 0.02)
            for number in range(3):
                begun = time.monotonic()
                client.sendall(b"%d" % number)
                assert client.recv(10) == b"%d" % number
                assert time.monotonic() - begun >= 0.02
            client.sendall(b"x" * 100_000)
            received = 0
            while received < 100_000:
                received += len(client.recv(1 << 16))
            client.shutdown(socket.SHUT_WR)
            assert client.recv(10) == b"", "the end must be relayed too"


def get(port: int, path: str, token: str | None) -> tuple[int, bytes, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", path, headers={"Authorization": f"Bearer {token}"} if token else {})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, body, answer.headers


def test_the_usual_chain_does_the_gateways_work(here: Lab) -> None:
    here.clear()
    sides = {"usual": here.target("usual chain").port, "bench": here.gateway(ON).port}
    with redis.Redis(port=here.redis.port) as client:
        for name in ("token0002", sha256(b"token0002").hexdigest()):
            for prefix in sides:
                client.set(f"{prefix}:blacklist:{name}", 1, ex=60)
    for port in sides.values():
        assert get(port, "/chain/1k", "unknown")[0] == 401
        assert get(port, "/chain/1k", "token0002")[0] == 401, "a revoked token"
        for token, cache in (("token0000", "MISS"), ("token0000", "HIT"), ("token0001", "MISS")):
            status, body, headers = get(port, "/chain/1k", token)
            assert (status, len(body), headers["X-Cache"]) == (200, 1024, cache)
            assert headers["X-RateLimit-Limit"] == "1000000"
            assert headers["X-RateLimit-Remaining"]
            assert headers["X-Request-Id"]


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
def test_a_row_is_measured(here: Lab) -> None:
    work = Work(
        "Redis hit", Load("/cached/1k", "fresh", 4), "constant", Load("/1k", connections=4), Gateway("off", "0")
    )
    found = run(work, here, seconds=1, rounds=1, say=lambda line: None)
    for measured in itertools.chain(found.gateway, found.baseline):
        assert measured["bad"] == 0
        assert measured["requests"] > 10
        assert 0 < measured["p50"] <= measured["p99"] <= measured["max"]
        assert measured["cpu"] > 0
    assert 0.5 < found.gateway[0]["trips"] < 3
    assert found.baseline[0]["trips"] == 0
    json.dumps(found.as_json())


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
def test_a_row_that_does_not_do_what_it_says_is_not_measured(here: Lab) -> None:
    work = Work("not cached", Load("/pass/1k", connections=2), "constant", Load("/1k", connections=2), cache="HIT")
    with pytest.raises(SystemExit, match="X-Cache is None, not HIT"):
        run(work, here, seconds=1, rounds=1)
