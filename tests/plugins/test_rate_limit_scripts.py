"""The two algorithms, in Lua and in Python, against models that are too simple to be wrong."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from fractions import Fraction
from math import ceil
from typing import Any

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from plugins.rate_limit.limits import Limit
from plugins.rate_limit.local import LocalLimits
from plugins.rate_limit.plugin import SCRIPTS, arguments
from tests.harness import Valkey

SECOND = 1_000_000
START = 1_700_000_000 * SECOND
TIME = b"redis.call('TIME')"

numbers = itertools.count()


@pytest.fixture(scope="module")
def client(shared_valkey: Valkey) -> Iterator[redis.Redis]:
    connected = redis.Redis.from_url(shared_valkey.url)
    yield connected
    connected.close()


class InRedis:
    """A script as it is, but for the one line that reads the clock."""

    def __init__(self, client: redis.Redis, algorithm: Any, limits: Sequence[Limit]) -> None:
        source = SCRIPTS[algorithm].source
        assert source.count(TIME) == 1
        self.script = client.register_script(source.replace(TIME, b"{ 0, ARGV[#ARGV] }"))
        name = next(numbers)
        self.keys = [f"{{{name}}}:{index}" for index in range(len(limits))]
        self.args = arguments(algorithm, limits)

    def take(self, now: int) -> list[int]:
        return self.script(self.keys, [*self.args, now])


class InProcess:
    def __init__(self, algorithm: Any, limits: Sequence[Limit]) -> None:
        self.limits = LocalLimits(algorithm, limits, clock=lambda: self.now)
        self.now = 0

    def take(self, now: int) -> list[int]:
        self.now = now
        return self.limits.take("somebody")


class WindowModel:
    def __init__(self, limits: Sequence[Limit]) -> None:
        self.limits = limits
        self.times: list[int] = []

    def live(self, limit: Limit, now: int) -> list[int]:
        return [time for time in self.times if time > now - limit.period]

    def take(self, now: int) -> list[int]:
        refusing = [n for n, limit in enumerate(self.limits, 1) if len(self.live(limit, now)) >= limit.count]
        if not refusing:
            self.times.append(now)
        standings = []
        for number, limit in enumerate(self.limits, 1):
            live = self.live(limit, now)
            standings.append((limit.count - len(live), -(min(live, default=now) + limit.period - now), number))
        remaining, wait, number = min(standings)
        return [int(not refusing), number, remaining, -wait, *refusing]


class BucketModel:
    def __init__(self, limits: Sequence[Limit]) -> None:
        self.limits = limits
        self.tokens = [Fraction(limit.capacity) for limit in limits]
        self.last = 0

    def take(self, now: int) -> list[int]:
        self.tokens = [
            min(Fraction(limit.capacity), tokens + Fraction((now - self.last) * limit.count, limit.period))
            for limit, tokens in zip(self.limits, self.tokens, strict=True)
        ]
        self.last = now
        refusing = [number for number, tokens in enumerate(self.tokens, 1) if tokens < 1]
        if not refusing:
            self.tokens = [tokens - 1 for tokens in self.tokens]
        standings = []
        for number, (limit, tokens) in enumerate(zip(self.limits, self.tokens, strict=True), 1):
            missing = 1 - tokens % 1
            standings.append((int(tokens), -ceil(missing * limit.period / limit.count), number))
        remaining, wait, number = min(standings)
        return [int(not refusing), number, remaining, -wait, *refusing]


MODELS = {"sliding_window": WindowModel, "token_bucket": BucketModel}

# A minute and more, so that real time, in which the keys expire, does not pass while a test plays.
limit = st.builds(
    lambda count, period, burst: Limit("", count, period, burst),
    st.integers(1, 7),
    st.integers(60, 240).map(lambda seconds: seconds * SECOND),
    st.integers(1, 9),
)
limits = st.lists(limit, min_size=1, max_size=3, unique_by=lambda limit: limit.period)


@st.composite
def arrivals(draw: st.DrawFn) -> tuple[list[Limit], list[int]]:
    """Limits, and times that like to fall on the edges of their periods."""
    chosen = draw(limits)
    edges = [edge for limit in chosen for edge in (limit.period, limit.period // limit.count)]
    near = st.sampled_from(edges).flatmap(lambda edge: st.integers(edge - 1, edge + 1))
    gaps = draw(st.lists(st.one_of(st.just(0), st.just(1), near, st.integers(0, max(edges))), max_size=30))
    return chosen, list(itertools.accumulate(gaps, initial=START))


@pytest.mark.parametrize("algorithm", MODELS)
@given(case=arrivals())
def test_script_and_local_class_do_what_the_model_does(
    client: redis.Redis, algorithm: str, case: tuple[list[Limit], list[int]]
) -> None:
    chosen, times = case
    model, script, local = MODELS[algorithm](chosen), InRedis(client, algorithm, chosen), InProcess(algorithm, chosen)
    for now in times:
        expected = model.take(now)
        assert script.take(now) == expected
        assert local.take(now) == expected


@given(case=arrivals())
def test_no_window_ever_has_more_than_its_limit(client: redis.Redis, case: tuple[list[Limit], list[int]]) -> None:
    chosen, times = case
    script = InRedis(client, "sliding_window", chosen)
    allowed = [now for now in times if script.take(now)[0]]
    for limit in chosen:
        for start in allowed:
            assert sum(start <= time < start + limit.period for time in allowed) <= limit.count


@given(case=arrivals())
def test_no_bucket_gives_more_than_burst_and_pace(client: redis.Redis, case: tuple[list[Limit], list[int]]) -> None:
    chosen, times = case
    script = InRedis(client, "token_bucket", chosen)
    allowed = [now for now in times if script.take(now)[0]]
    for limit in chosen:
        for first, last in itertools.combinations(range(len(allowed)), 2):
            most = limit.capacity + Fraction((allowed[last] - allowed[first]) * limit.count, limit.period)
            assert last - first + 1 <= most


@pytest.mark.parametrize("algorithm", MODELS)
@given(case=arrivals())
def test_waiting_as_told_is_enough_and_not_too_long(
    client: redis.Redis, algorithm: str, case: tuple[list[Limit], list[int]]
) -> None:
    chosen, times = case
    script = InRedis(client, algorithm, chosen)
    for now in times:
        allowed, _, _, wait, *_ = script.take(now)
        if not allowed:
            assert script.take(now + wait - 1)[0] == 0
            assert script.take(now + wait)[0] == 1
            return


@pytest.mark.parametrize("algorithm", MODELS)
def test_a_refused_request_consumes_nothing(client: redis.Redis, algorithm: str) -> None:
    script = InRedis(client, algorithm, [Limit("", 9, 60 * SECOND, 9), Limit("", 2, 120 * SECOND, 2)])
    assert [script.take(START)[0] for _ in range(2)] == [1, 1]
    before = [client.dump(key) for key in script.keys]
    assert [script.take(START + 1) for _ in range(5)] == [[0, 2, 0, script.take(START + 1)[3], 2]] * 5
    assert [client.dump(key) for key in script.keys] == before


@given(
    ages=st.lists(st.integers(0, 200 * SECOND), max_size=300),
    count=st.integers(1, 300),
    data=st.data(),
)
def test_a_window_of_any_fill_is_counted_right(
    client: redis.Redis, ages: list[int], count: int, data: st.DataObject
) -> None:
    """Also where many requests leave at once, and where the limit was higher before."""
    period = 100 * SECOND
    script = InRedis(client, "sliding_window", [Limit("", count, period, count)])
    if ages:
        client.rpush(script.keys[0], *[START - age for age in sorted(ages, reverse=True)])
    live = sorted((age for age in ages if age < period), reverse=True)
    allowed, _, remaining, wait, *_ = script.take(START)
    assert allowed == (len(live) < count)
    assert remaining == max(0, count - len(live) - allowed)
    assert wait == (period - live[max(0, len(live) - count)] if live else period)
    assert client.llen(script.keys[0]) == len(live) + allowed


@pytest.mark.parametrize("algorithm", MODELS)
def test_every_key_ends_but_not_before_its_limit(client: redis.Redis, algorithm: str) -> None:
    chosen = [Limit("", 5, 60 * SECOND, 5), Limit("", 9, 3600 * SECOND, 9)]
    script = InRedis(client, algorithm, chosen)
    for _ in range(5):
        script.take(START)
    needed = [60_000, 3_600_000 if algorithm == "sliding_window" else 3_600_000 * 5 // 9]
    for key, least in zip(script.keys, needed, strict=True):
        assert least < client.pttl(key) <= least + 1001


@pytest.mark.parametrize("algorithm", MODELS)
@pytest.mark.parametrize("garbage", ["string", "list", "hash", "set", "future", "nan", "truncated"])
def test_garbage_counts_as_absent_and_is_overwritten(client: redis.Redis, algorithm: str, garbage: str) -> None:
    script = InRedis(client, algorithm, [Limit("", 2, 60 * SECOND, 2), Limit("", 3, 90 * SECOND, 3)])
    key = script.keys[0]
    if garbage == "string":
        client.set(key, "\x00garbage 12 x")
    elif garbage == "list":
        client.rpush(key, "a", "b", "c")
    elif garbage == "hash":
        client.hset(key, mapping={"a": "b"})
    elif garbage == "set":
        client.sadd(key, "a")
    elif garbage == "future":
        client.rpush(key, *[START * 1000] * 3) if algorithm == "sliding_window" else client.set(
            key, f"0 {START * 1000}"
        )
    elif garbage == "nan":
        client.rpush(key, "nan", "nan", "inf") if algorithm == "sliding_window" else client.set(key, "nan nan")
    else:
        client.rpush(key, "", "17", "-") if algorithm == "sliding_window" else client.set(key, "120000000 ")
    assert [script.take(START)[0] for _ in range(3)] == [1, 1, 0]
    assert client.pttl(key) > 0


@pytest.mark.parametrize("algorithm", MODELS)
def test_a_clock_set_back_locks_nobody_out(client: redis.Redis, algorithm: str) -> None:
    script = InRedis(client, algorithm, [Limit("", 2, 60 * SECOND, 2)])
    assert [script.take(START)[0] for _ in range(3)] == [1, 1, 0]
    assert script.take(START - 5 * SECOND)[0] == 0
    assert script.take(START - 3600 * SECOND)[0] == 1


@pytest.mark.parametrize("algorithm", MODELS)
def test_a_clock_set_back_takes_nothing_away(client: redis.Redis, algorithm: str) -> None:
    script = InRedis(client, algorithm, [Limit("", 2, 60 * SECOND, 2)])
    assert [script.take(START)[0], script.take(START - SECOND)[0], script.take(START)[0]] == [1, 1, 0]


@pytest.mark.parametrize("algorithm", MODELS)
def test_the_scripts_read_the_clock_of_redis(client: redis.Redis, algorithm: str) -> None:
    chosen = [Limit("", 3, 60 * SECOND, 3)]
    key = f"{{{next(numbers)}}}:clock"
    before = client.time()
    client.eval(SCRIPTS[algorithm].source, 1, key, *arguments(algorithm, chosen))
    after = client.time()
    stored = client.lindex(key, 0) if algorithm == "sliding_window" else client.get(key).split()[1]
    low, high = (seconds * SECOND + rest for seconds, rest in (before, after))
    assert low <= int(stored) <= high


def test_a_counted_request_takes_few_bytes(client: redis.Redis) -> None:
    script = InRedis(client, "sliding_window", [Limit("", 1000, 3600 * SECOND, 1000)])
    client.rpush(script.keys[0], *range(START - 999, START))
    script.take(START)
    assert client.memory_usage(script.keys[0], samples=0) < 16_000


def test_local_memory_is_bounded_and_the_oldest_client_is_forgotten() -> None:
    local = LocalLimits("sliding_window", [Limit("", 1, 60 * SECOND, 1)], clock=lambda: START, max_bytes=100_000)
    assert local.take("first")[0] == 1
    assert local.take("first")[0] == 0
    for number in range(1000):
        local.take(f"client {number}")
    assert local.bytes <= 100_000
    assert 100 < len(local) < 1000
    assert local.take("client 999")[0] == 0
    assert local.take("first")[0] == 1


def test_local_memory_counts_what_a_window_holds() -> None:
    local = LocalLimits("sliding_window", [Limit("", 1000, 60 * SECOND, 1000)], clock=lambda: START)
    local.take("somebody")
    empty = local.bytes
    for _ in range(1500):
        local.take("somebody")
    assert local.bytes == empty + 999 * 8


@pytest.mark.parametrize(("parts", "passed"), [(1, 10), (2, 5), (4, 2), (100, 1)])
@pytest.mark.parametrize("algorithm", MODELS)
def test_a_share_of_the_limit(algorithm: Any, parts: int, passed: int) -> None:
    local = LocalLimits(algorithm, [Limit("", 10, 60 * SECOND, 10)], clock=lambda: START)
    local.share(parts)
    assert sum(local.take("somebody")[0] for _ in range(20)) == passed
