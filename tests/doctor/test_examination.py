from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.doctor import nodes
from gateway.doctor.examination import SLOTS, Use, coverage, examine, sentinels
from gateway.doctor.findings import Finding, Level
from gateway.doctor.needs import LINKS
from gateway.doctor.nodes import Deployment, Sentinels, Unreachable, find
from gateway.doctor.readings import Wanted, read
from tests.harness import eventually
from tests.servers import Cluster, Sentinel, TlsServer

WANTED = Wanted("gateway", [], list(LINKS), None, max_keys=100, seconds=1.0)
USE = Use("gateway", timeout=0.25, workers=1, keeps=["session"], scripts=[])


def test_slots():
    assert coverage([(5461, 16383), (0, 5460)]).level is Level.OK
    finding = coverage([(1, 100), (102, 16383)])
    assert finding.level is Level.CRITICAL
    assert finding.found == "2 of 16,384 are served by nobody"
    assert finding.hint.endswith("slots 0, 101")


@given(st.lists(st.tuples(st.integers(0, SLOTS - 1), st.integers(0, 3000)), max_size=12))
def test_slots_are_covered_exactly_if_each_is_in_a_range(starts):
    ranges = [(first, min(SLOTS - 1, first + count)) for first, count in starts]
    served = {slot for first, last in ranges for slot in range(first, last + 1)}
    finding = coverage(ranges)
    assert (finding.level is Level.OK) == (len(served) == SLOTS)
    if len(served) < SLOTS:
        assert finding.found.startswith(f"{SLOTS - len(served):,} of")


def test_sentinels():
    assert sentinels(Sentinels(3, 2)).level is Level.OK
    assert sentinels(Sentinels(2, 2)).level is Level.WARNING
    assert sentinels(Sentinels(1, 2)).level is Level.CRITICAL


# -- of real servers -------------------------------------------------------------------------------


async def looked_at(deployment: Deployment) -> list[Finding]:
    def look() -> list[Finding]:
        readings = [read(node, WANTED) for node in deployment.nodes]
        deployment.close()
        return examine(deployment, readings, USE)

    return await asyncio.to_thread(look)


async def test_a_cluster_with_a_primary_that_hangs(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "REPLY_SECONDS", 0.5)
    primary, other, *_ = cluster.servers
    await eventually(lambda: len(find(cluster.url).nodes) == 6)
    deployment = find(cluster.url)
    primary.pause()
    try:
        findings = await looked_at(deployment)
    finally:
        primary.resume()
    dead, alive = f"127.0.0.1:{primary.port}", f"127.0.0.1:{other.port}"
    [told] = [finding for finding in findings if finding.node == dead]
    assert (told.check, told.level) == ("version", Level.CRITICAL)
    assert "no answer" in told.found
    levels = {finding.check: finding.level for finding in findings if finding.node == alive}
    assert {levels[check] for check in ("version", "role", "rights", "replicas", "clock", "slow log")} == {Level.OK}
    assert Level.UNKNOWN not in levels.values()
    replicas = {finding.found for finding in findings if finding.check == "role" and finding.level is Level.OK}
    assert replicas == {"primary, cluster", "replica, cluster"}


async def test_a_node_of_a_cluster_by_the_url_of_a_single_server(cluster: Cluster) -> None:
    findings = await looked_at(find(cluster.servers[0].url))
    assert {finding.check for finding in findings if finding.level is Level.CRITICAL} == {"role"}
    assert any("redis+cluster://" in finding.hint for finding in findings)


async def test_sentinels_with_a_replica(sentinel: Sentinel) -> None:
    await eventually(sentinel.replica.in_sync)
    findings = await looked_at(find(sentinel.url))
    assert Level.CRITICAL not in {finding.level for finding in findings}
    assert [finding.level for finding in findings if finding.check == "sentinels"] == [Level.OK]
    told = {finding.node: finding.found for finding in findings if finding.check == "replicas"}
    assert told[f"127.0.0.1:{sentinel.primary.port}"].startswith("1, at most ")
    assert told[f"127.0.0.1:{sentinel.replica.port}"] == "up with its primary"


async def test_tls(tls: Callable[..., Awaitable[TlsServer]]) -> None:
    server = await tls()
    findings = await looked_at(await asyncio.to_thread(find, server.url))
    assert [finding.found for finding in findings if finding.check == "TLS"] == ["in use"]
    unverified = await asyncio.to_thread(find, f"{server.bare_url}?ssl_cert_reqs=none&ssl_check_hostname=false")
    findings = await looked_at(unverified)
    assert [finding.level for finding in findings if finding.check == "TLS"] == [Level.WARNING]
    with pytest.raises(Unreachable, match="certificate"):
        await asyncio.to_thread(find, server.bare_url)
