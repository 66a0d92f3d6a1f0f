"""The mirror's bound, what it keeps, what it costs, and its watchers."""

from __future__ import annotations

import gc
import random
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterable
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.store.mirror import FREED_AT_ONCE, MAX_STEPS, OBJECT_OVERHEAD, SIZE_STEP, Mirror, taken

SIZE = 15 * SIZE_STEP


def of_entries(count: int) -> Mirror:
    """A mirror with room for so many entries of `read`."""
    return Mirror(count * SIZE)


def value(mirror: Mirror, key: bytes) -> Any:
    """What is kept under a key; `"absent"` where nothing is."""
    kept = mirror.get(key)
    return "absent" if kept is None else kept.value


def read(mirror: Mirror, keys: Iterable[int], *, times: int = 1) -> int:
    """Read keys as the store does: what is not there is fetched and put; how many of the first reads were answered."""
    hits = 0
    for number in keys:
        key = b"key:%012d" % number
        hits += mirror.get(key) is not None
        for _ in range(times):
            if mirror.get(key) is None:
                mirror.put(key, number, SIZE - taken(key, number, 0))
    return hits


# -- the bound -------------------------------------------------------------------------------------


@given(
    st.integers(0, 20 * taken(b"", None, 0)),
    st.lists(
        st.tuples(
            st.sampled_from(["put", "put", "get", "get", "drop", "invalidate", "clear"]),
            st.integers(0, 40),
            st.integers(0, 2000),
        )
    ),
)
def test_it_never_holds_more_than_its_bound_nor_what_was_withdrawn(
    bound: int, steps: list[tuple[str, int, int]]
) -> None:
    mirror = Mirror(bound)
    model: dict[bytes, int] = {}
    for step, number, size in steps:
        key = b"key%d" % number
        if step == "put":
            mirror.put(key, size, size)
            model[key] = size
            fits = taken(key, size, size) <= bound
            assert value(mirror, key) == (size if fits else "absent"), "what was just read is there"
        elif step == "drop":
            mirror.drop(key)
            model.pop(key, None)
        elif step == "invalidate":
            mirror.invalidate([key, b"never read"])
            model.pop(key, None)
        elif step == "clear":
            mirror.clear()
            model.clear()
            assert (mirror.bytes, len(mirror)) == (0, 0)
        else:
            assert value(mirror, key) in ("absent", model.get(key)), "a value that was never put, or was withdrawn"
        assert 0 <= mirror.bytes + mirror._cleared_bytes <= bound
        kept = [key for key in model if key in mirror._entries]
        assert len(mirror) == len(kept)
        assert mirror.bytes == sum(taken(key, model[key], model[key]) for key in kept)
    for key in model:
        mirror.drop(key)
    assert (mirror.bytes, len(mirror)) == (0, 0)


def test_what_is_larger_than_the_bound_is_not_kept_nor_what_it_replaces() -> None:
    mirror = of_entries(2)
    read(mirror, [1, 2])
    mirror.put(b"key:%012d" % 1, "new", 5 * SIZE)
    assert (value(mirror, b"key:%012d" % 1), value(mirror, b"key:%012d" % 2)) == ("absent", 2)


def test_a_bound_of_nothing_turns_it_off() -> None:
    mirror = Mirror(0)
    mirror.put(b"", None, 0)
    mirror.clear()
    assert (len(mirror), mirror.get(b"")) == (0, None)


def test_what_was_parsed_weighs_more_than_its_reply() -> None:
    mirror = of_entries(10)
    mirror.put(b"plain", b"reply", 5)
    plain = mirror.bytes
    mirror.put(b"parsed", object(), 5)
    assert 0 <= mirror.bytes - 2 * plain - OBJECT_OVERHEAD < 2 * SIZE_STEP


MEASURE = """
import gc, os, sys, time
from pathlib import Path
from gateway.store.mirror import Mirror
from plugins.cache.entry import Entry, decode, encode
from plugins.cache.policy import Plan

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

def answer(number):
    head = b'Content-Type: application/json\\r\\nCache-Control: max-age=60\\r\\nETag: "%016x"\\r\\n' % number
    plan = Plan(now, now + 60, now + 60, now + 90, now + 120, now + 120, False, ("accept-encoding",))
    names = frozenset((b"content-type", b"cache-control", b"etag"))
    return encode(Entry(200, plan, head, names, os.urandom(8) * 128, generations=os.urandom(16)))

now = time.time()
mirror = Mirror(64 << 20)
gc.collect()
before = resident()
for number in range(20_000):
    key = b"gateway:cache:{%040x}" % number
    if sys.argv[1] == "absent":
        mirror.put(key, None, 32)
    elif sys.argv[1] == "generation":
        mirror.put(key, b"%032x" % number, 32)
    else:
        data = answer(number)
        mirror.put(key, decode(data), len(data))
assert mirror.evictions == 0
print((resident() - before) / mirror.bytes)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the process's memory from /proc")
@pytest.mark.parametrize("kind", ["absent", "generation", "answer"])
def test_the_process_grows_as_the_bytes_say(kind: str) -> None:
    command = [sys.executable, "-c", MEASURE, kind]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=30, cwd=Path(__file__).parents[2]
    )
    assert done.returncode == 0, done.stderr
    assert 0.6 < float(done.stdout) < 1.2


# -- what is kept ----------------------------------------------------------------------------------

ENTRIES = 1000
KEYS = 10 * ENTRIES


def zipf(count: int, seed: int) -> list[int]:
    """Draws from Zipf(1.0): key n is drawn with a probability in proportion to 1/(n+1)."""
    weights = list(accumulate(1 / (rank + 1) for rank in range(KEYS)))
    return random.Random(seed).choices(range(KEYS), cum_weights=weights, k=count)


def ideal(draws: list[int]) -> int:
    """The hits of an LFU that knows all frequencies beforehand: it holds the most frequent keys, always."""
    return sum(number < ENTRIES for number in draws)


@pytest.mark.parametrize("times", [1, 3], ids=["one read at a time", "each in a burst of three"])
def test_its_hit_rate_on_zipf_is_within_5_percent_of_the_ideal(times: int) -> None:
    mirror = of_entries(ENTRIES)
    read(mirror, zipf(6 * KEYS, seed=1), times=times)
    draws = zipf(6 * KEYS, seed=2)
    assert read(mirror, draws, times=times) > 0.95 * ideal(draws)


@pytest.mark.parametrize("times", [1, 3], ids=["read once", "each in a burst of three"])
def test_a_scan_of_cold_keys_leaves_the_warm_ones(times: int) -> None:
    mirror = of_entries(ENTRIES)
    read(mirror, zipf(6 * KEYS, seed=1))
    read(mirror, range(KEYS, KEYS + 10 * ENTRIES), times=times)
    draws = zipf(ENTRIES, seed=2)
    assert read(mirror, draws) > 0.93 * ideal(draws)


def test_it_follows_when_other_keys_become_popular() -> None:
    mirror = of_entries(ENTRIES)
    read(mirror, zipf(6 * KEYS, seed=1))
    read(mirror, [KEYS + number for number in zipf(2 * KEYS, seed=2)])
    draws = zipf(KEYS, seed=3)
    assert read(mirror, [KEYS + number for number in draws]) > 0.9 * ideal(draws)


def test_who_still_has_an_answer_holds_no_other() -> None:
    class Value:
        pass

    mirror = of_entries(10)
    other = Value()
    watched = weakref.ref(other)
    mirror.put(b"other", other, 1)
    mirror.put(b"held", 1, 1)
    held = mirror.get(b"held")
    del other
    mirror.invalidate([b"held"])
    mirror.invalidate([b"other"])
    assert (watched(), held and held.value) == (None, 1)


# -- what it costs ---------------------------------------------------------------------------------


class Counted(Mirror):
    """Counts how many entries its puts looked at."""

    steps = 0

    def _pass_over(self, *, mercy: bool) -> None:
        self.steps += 1
        super()._pass_over(mercy=mercy)


def test_one_put_does_not_walk_over_a_mirror_in_which_everything_was_read() -> None:
    mirror = Counted(5000 * SIZE)
    read(mirror, range(5000))
    read(mirror, range(5000), times=3)
    for number in range(5000, 5100):
        mirror.steps = 0
        read(mirror, [number])
        assert mirror.steps < MAX_STEPS
        assert value(mirror, b"key:%012d" % number) == number


def test_a_large_value_makes_its_room_over_several_reads() -> None:
    mirror = Counted(5000 * SIZE)
    read(mirror, range(5000))
    size = 4000 * SIZE
    for _ in range(4000 // MAX_STEPS + 1):
        assert mirror.get(b"large") is None
        mirror.steps = 0
        mirror.put(b"large", b"", size)
        assert mirror.steps <= MAX_STEPS
    assert value(mirror, b"large") == b""
    assert mirror.bytes <= mirror.max_bytes


def test_what_was_cleared_is_freed_by_and_by() -> None:
    class Value:
        pass

    mirror = Mirror(1 << 20)
    values = []
    for number in range(500):
        value = Value()
        values.append(weakref.ref(value))
        mirror.put(b"%d" % number, value, 1000)
        del value
    alive: Callable[[], int] = lambda: sum(value() is not None for value in values)  # noqa: E731
    mirror.clear()
    gc.collect()
    assert (alive(), len(mirror), mirror.get(b"1")) == (500, 0, None)
    for number in range(500 // FREED_AT_ONCE + 1):
        before = alive()
        mirror.put(b"%d" % number, b"", 0)
        assert before - FREED_AT_ONCE - 1 <= alive() < before
    assert alive() == 0
    assert len(mirror) == 500 // FREED_AT_ONCE + 1


def test_what_was_cleared_makes_room_first() -> None:
    mirror = of_entries(100)
    read(mirror, range(100))
    mirror.clear()
    mirror.put(b"large", b"", 80 * SIZE)
    assert value(mirror, b"large") == b""
    assert mirror.evictions == 0
    assert mirror.bytes + mirror._cleared_bytes <= mirror.max_bytes


# -- watchers --------------------------------------------------------------------------------------


async def test_a_watcher_that_gives_up_leaves_nothing_behind() -> None:
    mirror = Mirror(1000)
    mirror.watch(b"k").cancel()
    other = mirror.watch(b"k")
    mirror.invalidate([b"k"])
    assert other.done()
    assert not mirror._watchers


async def test_watchers_hear_of_their_key_whether_it_is_kept_or_not_and_of_a_loss_of_all() -> None:
    mirror = Mirror(10_000)
    mirror.put(b"kept", 1, 1)
    kept, evicted, other = mirror.watch(b"kept"), mirror.watch(b"evicted"), mirror.watch(b"other")
    mirror.invalidate([b"kept", b"evicted"])
    assert (kept.done(), evicted.done(), other.done()) == (True, True, False)
    assert mirror.invalidations == 2
    mirror.invalidate(None)
    assert other.done()
    assert mirror.invalidations == 3


def test_what_was_lost_can_be_looked_at_until_the_connection_is_back() -> None:
    mirror = Mirror(1 << 20)
    mirror.put(b"a", 1, 1)
    mirror.put(b"withdrawn", 2, 1)
    mirror.put(b"purged", 3, 1)
    mirror.invalidate([b"withdrawn"])
    mirror.lose(at=100.0)
    assert mirror.get(b"a") is None, "nobody is given it who has not asked for just that"
    assert (mirror.lost(b"a", 90.0), mirror.lost(b"a", 101.0)) == (1, None)
    assert mirror.lost(b"withdrawn", 0.0) is None
    mirror.forget(b"purged")
    assert mirror.lost(b"purged", 0.0) is None
    mirror.put(b"b", 4, 1)
    mirror.lose(at=200.0)
    assert (mirror.lost(b"a", 90.0), mirror.lost(b"b", 190.0)) == (1, 4), "one link after the other"
    mirror.clear()
    assert mirror.lost(b"a", 0.0) is None


@given(
    st.lists(st.tuples(st.sampled_from(["put", "lose", "clear", "forget", "drop"]), st.integers(0, 30)), max_size=60)
)
def test_what_was_lost_counts_against_the_bound(steps: list[tuple[str, int]]) -> None:
    bound = 5000
    mirror = Mirror(bound)
    for step, number in steps:
        key = b"k%d" % number
        if step == "put":
            mirror.put(key, b"v" * number, number)
        elif step in ("forget", "drop"):
            getattr(mirror, step)(key)
        elif step == "lose":
            mirror.lose(at=0.0)
        else:
            mirror.clear()
        held = sum(entry.size for left in mirror._cleared for entry in left.values())
        assert mirror._cleared_bytes == held
        assert mirror.bytes + held <= bound
        assert step != "forget" or mirror.lost(key, -1.0) is None
