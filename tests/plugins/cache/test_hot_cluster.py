"""How evenly the reads of one hot key spread over a cluster of three primaries, with and without copies."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from tests.conftest import StartGateway
from tests.harness import UpstreamServer
from tests.plugins.cache.conftest import Client
from tests.servers import Cluster

BODY = "x" * 20_000
REQUESTS = 192


async def shares(gateway: StartGateway, cluster: Cluster, ask: Client, copies: int) -> list[float]:
    """Which part of the bytes that were read came from each primary, the largest first."""
    node = await gateway(
        {
            "plugins": {"cache": {"shards": copies, "hot_threshold": 1}},
            "redis": {"url": cluster.url, "mirror": {"max_bytes": 0}},
        }
    )
    plugin: Any = node.plugins["cache"]
    path = f"/{copies}"
    for _ in range(3):
        await ask(node, path)
        await plugin._hot.report(plugin._redis)
    for _ in range(2 * copies):  # each copy is made by the first read that misses it
        await ask(node, path)
    before = await sent(cluster)
    for _ in range(REQUESTS):
        assert (await ask(node, path)).cache == "HIT"
    read = [after - was for was, after in zip(before, await sent(cluster), strict=True)]
    assert sum(read) > REQUESTS * len(BODY), "they came from Redis"
    return sorted((one / sum(read) for one in read), reverse=True)


async def sent(cluster: Cluster) -> list[int]:
    """Bytes that each primary has sent so far."""
    total = []
    for primary in await cluster.primaries():
        async with primary.client() as client:
            total.append((await client.info("stats"))["total_net_output_bytes"])
    return total


async def test_copies_take_the_reads_of_a_hot_key_off_one_primary(
    gateway: StartGateway, cluster: Cluster, ask: Client, upstream: UpstreamServer
) -> None:
    for path in ("/1", "/32"):
        upstream.answer(path, lambda request: web.Response(text=BODY, headers={"Cache-Control": "max-age=600"}))
    alone = await shares(gateway, cluster, ask, 1)
    spread = await shares(gateway, cluster, ask, 32)
    print("without copies", [f"{one:.0%}" for one in alone], "with 32", [f"{one:.0%}" for one in spread])
    assert alone[0] > 0.95
    assert spread[0] < 0.65
    assert spread[-1] > 0.1
