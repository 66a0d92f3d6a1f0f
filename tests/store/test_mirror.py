"""The mirror's bound and its watchers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.store.mirror import ENTRY_OVERHEAD, Mirror


@given(
    st.integers(0, 20 * ENTRY_OVERHEAD),
    st.lists(st.tuples(st.sampled_from(["put", "get", "drop"]), st.integers(0, 40), st.integers(0, 2000))),
)
def test_it_never_holds_more_than_its_bound(bound: int, steps: list[tuple[str, int, int]]) -> None:
    mirror = Mirror(bound)
    model: dict[bytes, int] = {}
    for step, number, size in steps:
        key = b"key%d" % number
        if step == "put":
            mirror.put(key, size, size)
            model[key] = size
        elif step == "drop":
            mirror.drop(key)
            model.pop(key, None)
        else:
            assert mirror.get(key) in (None, model.get(key)), "a value that was never put, or was dropped"
        assert 0 <= mirror.bytes <= bound
    mirror.clear()
    assert (mirror.bytes, len(mirror)) == (0, 0)


def test_what_is_read_again_outlives_what_is_not() -> None:
    mirror = Mirror(10 * (ENTRY_OVERHEAD + 104))
    mirror.put(b"warm", 1, 100)
    for number in range(50):
        mirror.get(b"warm")
        mirror.put(b"%04d" % number, number, 100)
    assert mirror.get(b"warm") == 1
    assert mirror.evictions > 0


async def test_a_watcher_that_gives_up_leaves_nothing_behind() -> None:
    mirror = Mirror(1000)
    mirror.watch(b"k").cancel()
    other = mirror.watch(b"k")
    mirror.invalidate([b"k"])
    assert other.done()
    assert not mirror._watchers
