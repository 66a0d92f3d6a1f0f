"""How long the gateway's loop lets what is due wait, by the gateway's own metric."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from bench.lab import Lab
from bench.report import Finding
from bench.rows import ON, chain

SECONDS: Final = 30
"""Over a thousand samples: the metric takes forty a second."""
METRIC: Final = "gateway_loop_lag_seconds"

Buckets = Mapping[float, float]
"""How many samples were at most so long, by that bound in seconds."""


def share(buckets: Buckets, part: float) -> float:
    """The bound, in seconds, that such a part of all samples kept to."""
    total = buckets[math.inf]
    return min(bound for bound, count in buckets.items() if count >= part * total)


def stalls(here: Lab) -> Finding:
    """Loop lag under the chain's load: with many connections a turn of the loop serves many requests, with one only
    one, so that what takes long then is a stall.
    """
    figures: dict[str, float] = {}
    found = []
    here.clear()
    process = here.gateway(ON)
    chain().run(process.port, 2)
    for connections in (64, 1):
        before = process.buckets(METRIC)
        with here.alone():
            chain(connections).run(process.port, SECONDS)
        after = process.buckets(METRIC)
        buckets = {bound: after[bound] - before[bound] for bound in after}
        p999, longest = share(buckets, 0.999) * 1e3, share(buckets, 1.0) * 1e3
        figures |= {f"samples_{connections}": buckets[math.inf], f"p999_{connections}": p999}
        figures[f"max_{connections}"] = longest
        found.append(
            f"with {connections} connection{'s' if connections > 1 else ''} p99.9 within {p999:g} ms,"
            f" longest within {longest:g} ms ({buckets[math.inf]:.0f} samples)"
        )
    return Finding("loop lag under the chain", "; ".join(found) + "; the timers' own part is 1 ms", figures=figures)
