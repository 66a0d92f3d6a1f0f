from __future__ import annotations

import asyncio
import time

import pytest

from gateway.doctor.examination import coverage
from gateway.doctor.findings import Level
from gateway.doctor.nodes import Deployment, Sentinels, Unreachable, find
from tests.harness import Valkey, eventually, free_port
from tests.servers import Cluster, Sentinel


def test_one_server(redis_url):
    deployment = find(redis_url)
    [node] = deployment.nodes
    assert (deployment.kind, node.role) == ("single", "primary")
    assert f"redis://{node.address}/0" == redis_url
    assert node.client.ping()
    deployment.close()


async def test_a_cluster(cluster: Cluster):
    dead = f"127.0.0.1:{free_port()}"
    url = cluster.url.replace("127.0.0.1", f"{dead},127.0.0.1", 1)

    def complete() -> Deployment | None:
        found = find(url)
        if len(found.nodes) == 6:
            return found
        # A replica is not told of until it has told how far it is.
        found.close()
        return None

    deployment = await eventually(complete)
    assert [node.role for node in deployment.nodes] == ["primary"] * 3 + ["replica"] * 3
    assert {node.address for node in deployment.nodes} == set(cluster.hosts.split(","))
    assert coverage(deployment.slots).level is Level.OK
    assert all(node.client.ping() for node in deployment.nodes)
    deployment.close()


async def test_sentinels(sentinel: Sentinel):
    deployment = find(sentinel.url)
    assert [(node.role, node.address) for node in deployment.nodes] == [
        ("primary", f"127.0.0.1:{sentinel.primary.port}"),
        ("replica", f"127.0.0.1:{sentinel.replica.port}"),
    ]
    assert deployment.sentinels == Sentinels(watching=3, quorum=2)
    deployment.close()
    with pytest.raises(Unreachable, match="no service other"):
        find(sentinel.url.replace("/main", "/other"))


async def test_what_the_sentinels_user_lacks(sentinel: Sentinel):
    watching = sentinel.sentinels[0]
    await watching.ask("ACL SETUSER", "ada", "reset", "on", ">hush", "+ping")
    url = f"redis+sentinel://127.0.0.1:{watching.port}/main?sentinel_username=ada&sentinel_password=hush"
    try:
        with pytest.raises(Unreachable, match=r"the Sentinels' user needs \+sentinel\|masters \+sentinel\|slaves"):
            await asyncio.to_thread(find, url)
    finally:
        await watching.ask("ACL DELUSER", "ada")


@pytest.mark.parametrize("scheme", ["redis://{}", "redis+cluster://{}", "redis+sentinel://{}/main"])
def test_nobody_there(scheme):
    with pytest.raises(Unreachable, match=r"refused|No master"):
        find(scheme.format(f"127.0.0.1:{free_port()}"))


@pytest.mark.parametrize(
    "scheme", ["redis://{}", "redis+cluster://{0},{0},{0},{0}", "redis+sentinel://{0},{0},{0},{0}/main"]
)
def test_who_does_not_answer_is_not_waited_for_long(own_valkey: Valkey, scheme):
    own_valkey.pause()
    began = time.monotonic()
    with pytest.raises(Unreachable):
        find(scheme.format(f"127.0.0.1:{own_valkey.port}"), seconds=0.5)
    assert time.monotonic() - began < 1.5
