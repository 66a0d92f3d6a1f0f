"""Links and mirror against a real server: pipelining, invalidation, scripts, loss and return."""

from __future__ import annotations

import asyncio
import time

import pytest
import redis.asyncio

from gateway.store import Known, RedisDown, RedisError, RedisTimeout, Script
from gateway.store.handshake import check_version
from tests.harness import Valkey, eventually, free_port
from tests.store.conftest import MakeStore


@pytest.mark.parametrize(("requests", "writes"), [(20, 1), (24, 1), (25, 2), (100, 5)])
async def test_the_questions_of_one_tick_leave_together(
    make: MakeStore, redis_url: str, requests: int, writes: int
) -> None:
    """In one write; those of many requests, so many at once that Redis does not wait for the last."""
    store = await make(redis_url)
    main = store.links[0]
    before = main.writes
    answers = []
    for number in range(requests):
        answers += [store.ask("SET", f"k{number}", 1), store.ask("SET", f"l{number}", 1)]
        store.all_asked()
    assert await asyncio.gather(*answers) == [b"OK"] * 2 * requests
    assert main.writes == before + writes


async def test_replies_reach_their_askers_though_some_gave_up(make: MakeStore, redis_url: str) -> None:
    store = await make(redis_url)
    for i in range(10):
        await store.ask("SET", f"k{i}", i)
    answers = [asyncio.ensure_future(store.ask("GET", f"k{i}")) for i in range(10)]
    for answer in answers[::2]:
        answer.cancel()
    assert [await answer for answer in answers[1::2]] == [b"1", b"3", b"5", b"7", b"9"]
    assert await store.ask("GET", "k0") == b"0"


async def test_a_read_is_kept_until_redis_withdraws_it(
    make: MakeStore, redis_url: str, redis_client: redis.asyncio.Redis
) -> None:
    store = await make(redis_url)
    await redis_client.set("k", "one")
    assert await store.read("GET", "k") == b"one"
    asked = store.asked
    answer = store.read("GET", "k")
    assert isinstance(answer, Known)
    assert await answer == b"one"
    assert store.asked == asked
    await redis_client.set("k", "two")
    await eventually(lambda: len(store.mirror) == 0)
    assert await store.read("GET", "k") == b"two"


async def test_an_absent_key_is_kept_too(make: MakeStore, redis_url: str, redis_client: redis.asyncio.Redis) -> None:
    store = await make(redis_url)
    assert await store.read("EXISTS", "gone") == 0
    assert isinstance(store.read("EXISTS", "gone"), Known)
    await redis_client.set("gone", 1)
    await eventually(lambda: len(store.mirror) == 0)
    assert await store.read("EXISTS", "gone") == 1


async def test_expiry_is_pushed(make: MakeStore, redis_url: str, redis_client: redis.asyncio.Redis) -> None:
    store = await make(redis_url)
    await redis_client.set("k", 1, px=60)
    assert await store.read("GET", "k") == b"1"
    await eventually(lambda: len(store.mirror) == 0)


async def test_flushall_empties_the_mirror(make: MakeStore, redis_url: str, redis_client: redis.asyncio.Redis) -> None:
    store = await make(redis_url)
    await store.read("GET", "a")
    await redis_client.flushall()
    await eventually(lambda: len(store.mirror) == 0)


async def test_our_own_write_is_seen_by_our_next_read(make: MakeStore, redis_url: str) -> None:
    store = await make(redis_url)
    for value in range(50):
        store.tell("SET", "k", value)
        assert await store.read("GET", "k") == str(value).encode()
        assert await store.read("GET", "k") == str(value).encode()


async def test_a_read_in_flight_during_our_own_write_does_not_stay(make: MakeStore, redis_url: str) -> None:
    store = await make(redis_url)
    await store.ask("SET", "k", "old")
    early = asyncio.ensure_future(store.read("GET", "k"))
    await asyncio.sleep(0)  # the read leaves before the write
    await store.ask("SET", "k", "new")
    assert await early == b"old"

    async def fresh() -> bool:
        return await store.read("GET", "k") == b"new"

    await eventually(fresh)


async def test_who_reads_the_same_key_meanwhile_shares_the_reply(make: MakeStore, redis_url: str) -> None:
    store = await make(redis_url)
    asked = store.asked
    assert await asyncio.gather(*(store.read("GET", "k") for _ in range(20))) == [None] * 20
    assert store.asked - asked == 2  # CLIENT CACHING YES, GET


async def test_what_parse_returns_is_kept(make: MakeStore, redis_url: str) -> None:
    store = await make(redis_url)
    await store.ask("SET", "n", "42")
    assert await store.read("GET", "n", parse=int) == 42
    assert await store.read("GET", "n", parse=int) == 42


@pytest.mark.parametrize("command", ["GET", "HGETALL"])
async def test_garbage_counts_as_absent(
    make: MakeStore, redis_url: str, redis_client: redis.asyncio.Redis, command: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = await make(redis_url)
    await redis_client.lpush("k", "x")
    assert await store.read(command, "k") is None
    assert await store.read(command, "k") is None
    assert len([record for record in caplog.records if "another type" in record.message]) == 1
    await redis_client.delete("k")
    await redis_client.set("k", "not a number")
    await eventually(lambda: len(store.mirror) == 0)
    assert await store.read("GET", "k", parse=int) is None


async def test_a_script_runs_by_its_hash_and_survives_script_flush(
    make: MakeStore, redis_url: str, redis_client: redis.asyncio.Redis
) -> None:
    store = await make(redis_url)
    script = Script("return {KEYS[1], ARGV[1]}")
    assert await store.run(script, ["k"], ["a"]) == [b"k", b"a"]
    await redis_client.script_flush()
    assert await asyncio.gather(*(store.run(script, ["k"], [n]) for n in range(5))) == [
        [b"k", str(n).encode()] for n in range(5)
    ]


async def test_keys_that_a_script_reads_are_not_tracked(
    make: MakeStore, redis_url: str, redis_client: redis.asyncio.Redis
) -> None:
    """A count of one worker must not be pushed to all the others."""
    store = await make(redis_url)
    before = store.mirror.invalidations
    await store.run(Script("return redis.call('GET', KEYS[1])"), ["count"])
    await redis_client.set("count", 1)
    await store.ask("PING")
    assert store.mirror.invalidations == before


async def test_an_error_reply_is_the_askers(make: MakeStore, redis_url: str) -> None:
    store = await make(redis_url)
    with pytest.raises(RedisError, match="unknown command"):
        await store.ask("NONSENSE", "k")
    assert await store.ask("PING") == b"PONG"


async def test_a_lost_connection_is_made_anew_at_once_however_seldom_a_silent_one_is_looked_at(
    make: MakeStore, redis_url: str, redis_client: redis.asyncio.Redis
) -> None:
    store = await make(redis_url, max_silence=60.0)
    await redis_client.execute_command("CLIENT KILL", "TYPE", "normal", "SKIPME", "yes")
    await eventually(lambda: [link.connects for link in store.links] == [2, 2], within=2)


async def test_the_watcher_is_woken_by_the_push(
    make: MakeStore, redis_url: str, redis_client: redis.asyncio.Redis
) -> None:
    store = await make(redis_url)
    await store.read("GET", "lock")
    woken = store.changed("lock")
    await redis_client.set("lock", 1)
    async with asyncio.timeout(2):
        await woken


async def test_a_bulky_value_does_not_delay_the_main_link(make: MakeStore, redis_url: str) -> None:
    store = await make(redis_url, timeout=5.0)
    await store.ask("SET", "big", b"x" * (8 << 20), bulk=True)
    big = [asyncio.ensure_future(store.ask("GET", "big", bulk=True)) for _ in range(8)]
    await store.ask("PING")
    assert not all(answer.done() for answer in big)
    await asyncio.gather(*big)


# -- loss --------------------------------------------------------------------------------------


async def test_a_killed_server_fails_what_is_in_flight_and_then_everything_at_once(
    make: MakeStore, own_valkey: Valkey
) -> None:
    store = await make(own_valkey.url, timeout=30.0, max_silence=60.0)
    await store.read("GET", "k")
    own_valkey.pause()
    waiting = [asyncio.ensure_future(store.ask("GET", "k")) for _ in range(10)]
    watcher = store.changed("k")
    await asyncio.sleep(0)
    own_valkey.kill()
    for answer in waiting:
        with pytest.raises(RedisDown):
            await answer
    assert watcher.done()
    assert not store.up
    assert len(store.mirror) == 0
    started = time.monotonic()
    for _ in range(100):
        with pytest.raises(RedisDown):
            await store.ask("GET", "k")
    assert time.monotonic() - started < 1.0


async def test_it_comes_back_with_tracking_and_scripts(make: MakeStore, own_valkey: Valkey) -> None:
    store = await make(own_valkey.url)
    script = Script("return 7")
    store.register(script)
    own_valkey.kill()
    await eventually(lambda: not store.up)
    own_valkey.start()
    await eventually(lambda: store.up)
    assert await store.run(script, ["k"]) == 7
    assert await store.read("GET", "k") is None
    other = redis.asyncio.Redis.from_url(own_valkey.url)
    await other.set("k", "v")
    await other.aclose()
    await eventually(lambda: len(store.mirror) == 0)
    assert await store.read("GET", "k") == b"v"


async def test_a_server_that_is_not_there_yet(make: MakeStore) -> None:
    server = Valkey()
    store = await make(server.url)
    with pytest.raises(RedisDown):
        await store.ask("PING")
    try:
        server.start()
        await eventually(lambda: store.up)
        assert await store.ask("PING") == b"PONG"
    finally:
        server.remove()


async def test_a_stopped_server_costs_the_timeout_and_then_nothing(make: MakeStore, own_valkey: Valkey) -> None:
    """The half-open case: SIGSTOP, nothing is refused and nothing answered."""
    store = await make(own_valkey.url, timeout=0.1, max_silence=0.4)
    await store.read("GET", "revoked")
    own_valkey.pause()
    started = time.monotonic()
    with pytest.raises(RedisTimeout):
        await store.ask("GET", "k")
    assert time.monotonic() - started < 0.3
    await eventually(lambda: not any(link.up for link in store.links), within=2)
    assert len(store.mirror) == 0, "what was read may have been withdrawn meanwhile"
    answer = store.ask("GET", "k")
    assert answer.ready, "nobody waits for a server that is known to be away"
    assert isinstance(answer.error, RedisDown)
    own_valkey.resume()
    await eventually(lambda: store.up)
    assert await store.ask("PING") == b"PONG"


async def test_a_late_reply_is_not_taken_for_the_next_one(make: MakeStore, own_valkey: Valkey) -> None:
    store = await make(own_valkey.url, timeout=0.1, max_silence=30.0)
    await store.ask("SET", "a", "A")
    await store.ask("SET", "b", "B")
    own_valkey.pause()
    with pytest.raises(RedisTimeout):
        await store.ask("GET", "a")
    own_valkey.resume()

    async def answered() -> bool:
        try:
            return await store.ask("GET", "b") == b"B"
        except RedisTimeout:
            return False

    await eventually(answered)


async def test_a_full_queue_fails_at_once(make: MakeStore, own_valkey: Valkey) -> None:
    store = await make(own_valkey.url, timeout=1.0, max_queue=50, max_silence=30.0)
    own_valkey.pause()
    answers = [store.ask("GET", "k") for _ in range(60)]
    results = await asyncio.gather(*(asyncio.wait_for(answer, 5) for answer in answers[50:]), return_exceptions=True)
    assert all(isinstance(result, RedisDown) and "full" in str(result) for result in results)
    own_valkey.resume()
    await asyncio.gather(*answers[:50], return_exceptions=True)


async def test_garbage_on_the_wire_ends_the_connection(make: MakeStore) -> None:
    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(babble, "127.0.0.1", port := free_port())
    store = await make(f"redis://127.0.0.1:{port}")
    assert not store.up
    assert "protocol error" in store.links[0].why_down
    await store.stop()
    server.close()
    await server.wait_closed()


async def test_a_wrong_password_is_said(make: MakeStore, own_valkey: Valkey) -> None:
    client = redis.asyncio.Redis.from_url(own_valkey.url)
    await client.config_set("requirepass", "right")
    await client.aclose()
    wrong = await make(own_valkey.url.replace("//", "//:wrong@"))
    assert not wrong.up
    assert "WRONGPASS" in wrong.links[0].why_down
    right = await make(own_valkey.url.replace("//", "//:right@"))
    assert right.up


def test_redis_6_is_refused() -> None:
    with pytest.raises(RedisError, match="too old"):
        check_version({b"server": b"redis", b"version": b"6.2.14"})
    assert check_version({b"server": b"valkey", b"version": b"9.1.0"}) == "valkey 9.1.0"
