"""A real cluster: questions by slot, redirects while slots move, failover, and a mirror that stays true."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.crc import key_slot

from gateway.observe import Metrics, watch_redis
from gateway.store import Call, Gets, Known, Read, Redis, RedisDown, RedisError, Script
from gateway.store.slots import own_line, slot_of
from tests.certificates import Authority
from tests.harness import eventually, free_port
from tests.relay import running_relay
from tests.servers import Cluster, Migration, Server, free_ports
from tests.store.conftest import MakeStore

KEYS = [f"key:{number}" for number in range(60)]
COUNT = Script("return redis.call('INCRBY', KEYS[1], ARGV[1])", "count.lua")
BOTH = Script("return {redis.call('GET', KEYS[1]), redis.call('GET', KEYS[2])}", "both.lua")


async def written(cluster: Cluster, key: str, value: Any) -> None:
    """Somebody else writes, as a cluster's client would: where the key lives."""
    await (await cluster.home(key)).ask("SET", key, value)


async def waits_until(store: Redis, key: str, value: Any, within: float = 5) -> None:
    async def reads() -> bool:
        with contextlib.suppress(RedisDown):
            return bool(await store.read("GET", key) == value)
        return False

    await eventually(reads, within=within)


async def back(migration: Migration) -> None:
    """The slot goes back to where it was, so that the next test need not have a new cluster."""
    await (await migration.cluster.migrate(migration.slot, migration.source)).finish()


# -- questions -------------------------------------------------------------------------------------


async def test_each_question_reaches_the_primary_of_its_key(make: MakeStore, cluster: Cluster) -> None:
    store = await make(cluster.url)
    assert store.up
    assert len(store.links) == 6
    await asyncio.gather(*[store.ask("SET", key, key) for key in KEYS])
    assert await asyncio.gather(*[store.read("GET", key) for key in KEYS]) == [key.encode() for key in KEYS]
    assert await asyncio.gather(*[store.run(COUNT, [f"{key}:n"], [7]) for key in KEYS]) == [7] * len(KEYS)
    for key in KEYS:
        store.tell("SET", key, "told", bulk=True)
    assert await asyncio.gather(*[store.ask("GET", key, bulk=True) for key in KEYS]) == [b"told"] * len(KEYS)
    assert all(link.commands > 5 for link in store.links if link.kind == "main")


async def test_several_keys_at_once_are_asked_for_slot_by_slot(make: MakeStore, cluster: Cluster) -> None:
    store = await make(cluster.url)
    await asyncio.gather(*[store.ask("SET", key, number) for number, key in enumerate(KEYS)])
    (await store.ask("RPUSH", "list", "x"),)
    gets = Gets([*[Read("GET", key, parse=int) for key in KEYS], Read("GET", "gone"), Read("GET", "list")])
    for _ in range(2):
        assert await store.gets(gets) == [*range(len(KEYS)), None, None]


async def test_prepared_questions_may_be_asked_again(make: MakeStore, cluster: Cluster) -> None:
    store = await make(cluster.url)
    call, read = Call(COUNT, ["{n}:1"], [1]), Read("GET", "{n}:1", parse=int)
    for number in range(1, 4):
        assert await store.call(call) == number
        assert await store.look(read) == number


async def test_a_script_that_is_forgotten_is_sent_to_the_server_that_has_forgotten_it(
    make: MakeStore, cluster: Cluster
) -> None:
    store = await make(cluster.url)
    store.register(COUNT)
    await cluster.flush()
    assert await asyncio.gather(*[store.run(COUNT, [key], [1]) for key in KEYS]) == [1] * len(KEYS)


async def test_a_script_must_not_cross_slots(make: MakeStore, cluster: Cluster, redis_url: str) -> None:
    for url in (cluster.url, redis_url):  # whoever writes a plugin tries it on one server
        store = await make(url)
        with pytest.raises(ValueError, match=r"both\.lua lie in different slots .* one hash tag"):
            store.run(BOTH, ["a", "b"])
        assert await store.run(BOTH, ["{x}a", "{x}b"]) == [None, None]


@given(st.text("ab{}é:", max_size=12) | st.text(max_size=20))
def test_the_slot_is_that_of_redis_py(key: str) -> None:
    assert Cluster.slot(key) == slot_of(key.encode()) == key_slot(key.encode())
    inside = key.partition("{")[2].partition("}")
    if inside[0] and inside[1]:
        assert slot_of(key.encode()) == slot_of(inside[0].encode())


# -- the mirror --------------------------------------------------------------------------------------


async def test_every_primary_withdraws_what_has_changed(make: MakeStore, cluster: Cluster) -> None:
    store = await make(cluster.url)
    for bulk in (False, True):
        assert await asyncio.gather(*[store.read("GET", f"{bulk}{key}", bulk=bulk) for key in KEYS]) == [None] * 60
        asked = store.asked
        answers = [store.read("GET", f"{bulk}{key}", bulk=bulk) for key in KEYS]
        assert all(isinstance(answer, Known) for answer in answers)
        assert store.asked == asked
    for key in KEYS[:6]:
        await written(cluster, f"False{key}", "new")
    for key in KEYS[:6]:
        await waits_until(store, f"False{key}", b"new", within=2)
    assert len(store.mirror) == 2 * len(KEYS)


async def test_what_is_absent_is_not_believed_while_its_slot_moves(make: MakeStore, cluster: Cluster) -> None:
    """The revocation of a token is written to the new server, which does not know who has read the key at the old."""
    store = await make(cluster.url, max_silence=0.6)
    assert await store.read("GET", "revoked") is None
    migration = await cluster.migrate(cluster.slot("revoked"))
    async with migration.target.client() as client:
        connection = await client.connection_pool.get_connection()
        for words in (("ASKING",), ("SET", "revoked", "yes")):
            await connection.send_command(*words)
            await connection.read_response()
        await client.connection_pool.release(connection)
    began = time.monotonic()
    await waits_until(store, "revoked", b"yes", within=2)
    assert time.monotonic() - began < 0.6 + 0.5, "within max_silence, and what the machine takes"
    # What is read meanwhile is not kept: nobody would withdraw it.
    assert not isinstance(store.read("GET", "revoked"), Known)
    await migration.finish()
    await waits_until(store, "revoked", b"yes")
    await back(migration)


async def test_a_slot_that_has_moved_is_noticed_though_nobody_asks(make: MakeStore, cluster: Cluster) -> None:
    store = await make(cluster.url, max_silence=0.6)
    assert await store.read("GET", "revoked") is None
    migration = await cluster.migrate(cluster.slot("revoked"))
    await migration.finish()
    await written(cluster, "revoked", "yes")
    await eventually(lambda: store.mirror.get(b"revoked") is None, within=2)
    await waits_until(store, "revoked", b"yes")
    # And now it is the new server that withdraws it.
    await eventually(lambda: isinstance(store.read("GET", "revoked"), Known), within=5)
    await written(cluster, "revoked", "no")
    await waits_until(store, "revoked", b"no", within=1)
    await back(migration)


# -- moving slots -------------------------------------------------------------------------------------


async def test_nothing_is_lost_while_a_slot_moves_under_traffic(make: MakeStore, cluster: Cluster) -> None:
    store = await make(cluster.url, timeout=2.0)
    keys = [f"{{moving}}:{number}" for number in range(40)]
    errors: list[Exception] = []
    counted = 0
    ended = asyncio.Event()

    async def traffic() -> None:
        nonlocal counted
        while not ended.is_set():
            answers = [store.run(COUNT, [key], [1]) for key in keys]
            reads = [store.read("GET", key, parse=int) for key in keys]
            for key in keys:
                store.tell("INCR", f"{key}:told")
            try:
                await asyncio.gather(*answers, *reads)
            except RedisError as error:
                errors.append(error)
            counted += 1
            await asyncio.sleep(0)

    busy = asyncio.create_task(traffic())
    await eventually(lambda: counted > 3)
    migration = await cluster.migrate(cluster.slot(keys[0]))
    while left := await migration.keys():
        await migration.move(*left[:10])
    await migration.finish()
    after = counted
    await eventually(lambda: counted > after + 3)
    ended.set()
    await busy
    assert errors == []
    values = await asyncio.gather(*[store.ask("GET", key) for key in keys])
    assert values == [str(counted).encode()] * len(keys), "each was counted once"
    told = await asyncio.gather(*[store.ask("GET", f"{key}:told") for key in keys])
    assert told == [str(counted).encode()] * len(keys)
    await back(migration)


async def test_a_script_whose_keys_are_parted_waits_for_them(make: MakeStore, cluster: Cluster) -> None:
    store = await make(cluster.url, timeout=5.0)
    await asyncio.gather(*[store.ask("SET", key, key) for key in ("{t}a", "{t}b")])
    migration = await cluster.migrate(cluster.slot("t"))
    await migration.move("{t}a")
    answer = asyncio.ensure_future(store.run(BOTH, ["{t}a", "{t}b"]))
    await migration.move("{t}b")
    assert await answer == [b"{t}a", b"{t}b"]
    await migration.finish()
    await back(migration)


async def test_what_is_redirected_to_a_silent_server_takes_no_longer_than_the_timeout(
    make: MakeStore, cluster: Cluster
) -> None:
    store = await make(cluster.url, timeout=0.3, max_silence=60.0)
    migration = await cluster.migrate(cluster.slot("slow"))
    migration.target.pause()
    began = time.monotonic()
    with pytest.raises(RedisDown):
        await store.ask("GET", "slow")
    assert time.monotonic() - began < 0.6
    migration.target.resume()
    await migration.finish()
    await back(migration)


@pytest.mark.parametrize("word", ["MOVED", "ASK", "MOVED 99999 127.0.0.1:1", "ASK 1 nowhere", "CLUSTERDOWN of my own"])
async def test_a_script_that_raises_what_looks_like_a_redirect(make: MakeStore, cluster: Cluster, word: str) -> None:
    store = await make(cluster.url)
    with pytest.raises(RedisError, match=word):
        await store.run(Script(f"return redis.error_reply('{word}')"), ["k"])
    assert await store.ask("PING") == b"PONG"


# -- failover -----------------------------------------------------------------------------------------


async def test_a_killed_primary_is_replaced(make: MakeStore, cluster: Cluster) -> None:
    store = await make(cluster.url)
    store.register(COUNT)
    key, other = await in_different_thirds(cluster)
    assert await store.read("GET", key) is None
    dead = await cluster.home(key)
    dead.kill()
    await eventually(lambda: not store.up, within=5)
    assert len(store.mirror) == 0
    answer = store.ask("GET", key)
    assert answer.ready, "nobody waits for a server that is known to be away"
    assert isinstance(answer.error, RedisDown)
    assert await store.ask("SET", other, 1) == b"OK", "the other primaries go on"
    await cluster.failed_over(dead)
    await eventually(lambda: store.up, within=10)
    assert await store.run(COUNT, [key], [3]) == 3
    assert await store.read("GET", key) == b"3"
    await written(cluster, key, "4")
    await waits_until(store, key, b"4", within=2)


async def test_a_stopped_primary_is_replaced_and_the_others_go_on(make: MakeStore) -> None:
    """It takes what is sent and says nothing: the table is read again before its connections count as lost."""
    async with Cluster("--cluster-require-full-coverage", "no") as cluster:
        store = await make(cluster.url, timeout=0.1, max_silence=2.0)
        key, other = await in_different_thirds(cluster)
        stopped = await cluster.home(key)
        assert await store.read("GET", key) is None
        stopped.pause()
        slowest = failed = 0.0
        while True:
            began = time.monotonic()
            assert await store.ask("SET", other, 1) == b"OK"
            try:
                await store.ask("SET", key, 1)
            except RedisDown:
                failed += 1
            else:
                break
            slowest = max(slowest, time.monotonic() - began)
            await asyncio.sleep(0.01)
        assert failed > 5
        assert slowest < 0.5
        await waits_until(store, key, b"1", within=1)


async def test_a_promotion_in_order_costs_no_error_and_metrics_show_it(make: MakeStore, cluster: Cluster) -> None:
    store, metrics = await make(cluster.url, timeout=2.0), Metrics()
    watch_redis(metrics, store)

    def ports() -> set[str]:
        series = metrics.snapshot()["gateway_redis_up"]["series"]
        return {label.rpartition(":")[2] for (label,), value in series if value == 1}

    assert ports() == {str(server.port) for server in cluster.servers[:3]}
    await store.ping()
    key = next(key for key in KEYS if cluster.slot(key) < 16384 // 3)
    assert await store.ask("SET", key, "before") == b"OK"
    await cluster.promote(cluster.servers[3])
    assert await store.ask("SET", key, "after") == b"OK"
    await cluster.settled()
    await eventually(lambda: ports() == {str(server.port) for server in cluster.servers[1:4]}, within=5)
    await eventually(lambda: len(metrics.snapshot()["gateway_redis_up"]["series"]) == 6)
    await waits_until(store, key, b"after")


async def test_a_primary_that_is_cut_off_from_the_others_is_not_believed(make: MakeStore, cluster: Cluster) -> None:
    """It still answers this worker, and knows nothing of what happens on the other side."""
    store = await make(cluster.url, max_silence=1.0)
    key, _ = await in_different_thirds(cluster)
    alone = await cluster.home(key)
    assert await store.read("GET", key) is None
    others = [server for server in cluster.servers if server is not alone]
    for server in others:
        server.pause()
    try:
        await eventually(lambda: store.mirror.get(key.encode()) is None, within=6)
    finally:
        for server in others:
            server.resume()


async def in_different_thirds(cluster: Cluster) -> tuple[str, str]:
    """Two keys that live on different primaries."""
    first = await cluster.home(KEYS[0])
    for key in KEYS[1:]:
        if await cluster.home(key) is not first:
            return KEYS[0], key
    raise LookupError


# -- beginning ----------------------------------------------------------------------------------------


async def test_a_cluster_that_is_not_there_yet(make: MakeStore, caplog: pytest.LogCaptureFixture) -> None:
    cluster = Cluster()
    store = await make(cluster.url)
    assert not store.up
    answer = store.ask("GET", "k")
    assert answer.ready
    assert "no node of the cluster tells its slots" in str(answer.error)
    await asyncio.sleep(0.5)
    assert len([record for record in caplog.records if "no node of the cluster" in record.message]) == 1
    async with cluster:
        await eventually(lambda: store.up, within=10)
        assert await store.ask("SET", "k", 1) == b"OK"


@pytest.mark.parametrize(
    ("made", "written_as", "said"),
    [
        ("cluster", "redis://", 'this server belongs to a cluster: expected "redis+cluster://'),
        ("single", "redis+cluster://", 'it is no cluster: expected "redis://HOST:PORT"'),
    ],
)
async def test_the_wrong_kind_of_url_is_told(
    make: MakeStore, cluster: Cluster, redis_url: str, made: str, written_as: str, said: str
) -> None:
    url = cluster.servers[0].url if made == "cluster" else redis_url
    store = await make(url.replace("redis://", written_as).removesuffix("/0"))
    assert not store.up
    assert said in store.why_down


async def test_a_wrong_password_is_told_without_it(make: MakeStore) -> None:
    async with Cluster(password="right") as cluster:
        wrong = await make(cluster.url.replace("right", "hunter2"))
        assert not wrong.up
        assert "invalid username-password" in wrong.why_down
        assert "hunter2" not in wrong.why_down
        right = await make(cluster.url)
        assert await right.ask("SET", "k", 1) == b"OK"


async def test_a_cluster_behind_tls(make: MakeStore, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    context = authority.server_context(authority.issue("127.0.0.1"))
    port, bus = free_ports(2)
    server = Server(port, "--cluster-enabled", "yes", "--cluster-port", str(bus))
    try:
        server.start()
        async with running_relay(server.port, context) as relay:
            await server.ask("CLUSTER ADDSLOTSRANGE", 0, 16383)
            await server.ask("CONFIG SET", "cluster-announce-port", relay.port)
            await eventually(lambda: server_is_ok(server))
            store = await make(f"rediss+cluster://127.0.0.1:{relay.port}?ssl_ca_certs={authority.path}")
            await eventually(lambda: store.up)
            assert await asyncio.gather(*[store.ask("SET", key, 1) for key in KEYS]) == [b"OK"] * len(KEYS)
            await store.stop()
    finally:
        server.remove()


async def server_is_ok(server: Server) -> bool:
    return bool((await server.ask("CLUSTER INFO"))["cluster_state"] == "ok")


async def test_a_node_that_is_away_is_passed_over(make: MakeStore, cluster: Cluster) -> None:
    store = await make(f"redis+cluster://127.0.0.1:{free_port()},{cluster.hosts}")
    assert store.up


def test_a_nodes_own_line() -> None:
    line = "07c3 127.0.0.1:7001@17001,host {} - 0 1426238317239 4 connected 0-1 5461 [93->-292f] [77-<-e7d1]"
    own = own_line("\n".join(["67ed 127.0.0.1:7002@17002 master - 0 0 2 connected 7-9", line.format("myself,master")]))
    assert (own.primary, own.slots(), own.migrating) == (True, {0, 1, 5461}, {93})
    assert not own_line(line.format("myself,slave").encode()).primary
    with pytest.raises(ValueError, match="no line of the node itself"):
        own_line(line.format("master"))
