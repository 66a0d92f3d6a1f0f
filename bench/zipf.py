"""How many reads the mirror answers when ten times as much is asked for as it can hold.

Keys are asked for by Zipf's law with exponent 1.0: the n-th most popular one n times more rarely than the first. The
best that a cache of N entries can do is to hold the N most popular ones (an ideal LFU, which knows the popularity).
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable
from typing import Final

from bench.report import Finding
from gateway.store.mirror import Mirror

MIRROR_BYTES: Final = 8 << 20
VALUE_BYTES: Final = 1024
TIMES: Final = 10
LEAST: Final = 0.95


def capacity(max_bytes: int = MIRROR_BYTES) -> int:
    """How many such entries a mirror holds."""
    mirror = Mirror(max_bytes)
    for number in itertools.count():
        mirror.put(b"%09d" % number, 0, VALUE_BYTES)
        if len(mirror) <= number:
            return number
    raise AssertionError


def weights(keys: int) -> list[float]:
    """Zipf's, added up: what `random.choices` takes as `cum_weights`."""
    return list(itertools.accumulate(1 / rank for rank in range(1, keys + 1)))


def ideal(held: int, keys: int) -> float:
    """The share of reads that the most popular `held` of `keys` keys get."""
    summed = weights(keys)
    return summed[held - 1] / summed[-1]


def hits(mirror: Mirror, reads: Iterable[int]) -> int:
    """Read these keys as `Redis.read` does, keeping what was not there; how many were."""
    found = 0
    for number in reads:
        key = b"%09d" % number
        if mirror.get(key) is None:
            mirror.put(key, 0, VALUE_BYTES)
        else:
            found += 1
    return found


def rates(max_bytes: int = MIRROR_BYTES, seed: int = 1) -> dict[str, float]:
    """Hit rates: of Zipf's reads alone, just after a scan of as many keys, and with a cold read beside each."""
    held = capacity(max_bytes)
    keys = held * TIMES
    summed, source, cold = weights(keys), random.Random(seed), itertools.count(keys)
    mirror = Mirror(max_bytes)

    def reads(number: int) -> list[int]:
        return source.choices(range(keys), cum_weights=summed, k=number)

    hits(mirror, reads(10 * keys))
    alone = hits(mirror, reads(5 * keys)) / (5 * keys)
    hits(mirror, itertools.islice(cold, keys))
    after = hits(mirror, reads(held)) / held
    hits(mirror, reads(2 * keys))
    beside = 0
    for _ in range(3 * keys // held):
        batch = reads(held)
        mixed = [number for pair in zip(batch, cold, strict=False) for number in pair]
        beside += hits(mirror, mixed)
    return {
        "held": float(held),
        "keys": float(keys),
        "ideal": ideal(held, keys),
        "alone": alone,
        "after_scan": after,
        "beside_scan": beside / (3 * keys // held * held),
    }


def zipf() -> Finding:
    """The mirror's hit rate, as a share of the ideal."""
    found = rates()
    shares = {name: found[name] / found["ideal"] for name in ("alone", "after_scan", "beside_scan")}
    text = (
        f"{found['alone']:.1%} of {found['ideal']:.1%} that an ideal LFU has: {shares['alone']:.1%} of it;"
        f" just after a scan of {found['keys']:,.0f} cold keys {shares['after_scan']:.1%}; with a cold read beside each"
        f" {shares['beside_scan']:.1%}"
    )
    return Finding(
        f"hit rate, Zipf(1.0) over {TIMES} times {found['held']:,.0f} entries",
        text,
        shares["alone"] >= LEAST,
        f"≥ {LEAST:.0%} of the ideal",
        found,
    )
