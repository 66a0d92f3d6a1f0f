from __future__ import annotations

import redis

from gateway.doctor.keys import BATCH, ours, sample


def test_ours_are_below_the_prefix_or_named_by_the_configuration():
    templates = ["sess:{id}:v1"]
    assert ours(b"gateway:cache:x", "gateway", templates)
    assert ours(b"sess:x:v1", "gateway", templates)
    for other in (b"gateway2:x", b"gateway", b"sess::v1", b"sess:x:v2", b"other:sess:x:v1"):
        assert not ours(other, "gateway", templates), other


def test_finds_keys_without_an_end_and_the_biggest_ones(redis_url):
    with redis.Redis.from_url(redis_url) as client:
        client.set("gateway:a", "x" * 10_000, ex=100)
        client.set("gateway:b", "x")
        client.set("theirs", "x" * 100_000)
        told: list[tuple[int, int]] = []
        seen = sample(
            client, "gateway", [], max_keys=1000, seconds=5, progress=lambda done, total: told.append((done, total))
        )
    assert (seen.all_keys, seen.ours, seen.without_ttl, seen.named, seen.complete) == (3, 2, 1, [b"gateway:b"], True)
    assert [name for _, name in seen.biggest] == [b"gateway:a", b"gateway:b"]
    assert seen.biggest[0][0] > 10_000
    assert told[-1] == (3, 3)


def test_is_bounded_by_a_number_of_keys_and_by_time(redis_url):
    with redis.Redis.from_url(redis_url) as client:
        client.mset({f"gateway:{number}": "x" for number in range(5 * BATCH)})
        few = sample(client, "gateway", [], max_keys=1, seconds=5)
        ticks = iter(range(100))
        short = sample(client, "gateway", [], max_keys=10**6, seconds=2, clock=lambda: float(next(ticks)))
    assert few.looked_at < 2 * BATCH
    assert not few.complete
    assert BATCH < short.looked_at < 4 * BATCH
