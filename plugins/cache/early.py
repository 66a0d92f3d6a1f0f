"""When to refresh what is still fresh, so that what is read often never ends.

XFetch (Vattani, Chierichetti, Lowenstein: Optimal Probabilistic Cache Stampede Prevention, VLDB 2015): each request
draws how much time it leaves for a refresh, by an exponential distribution with the time that one takes as its mean. If
the answer ends sooner, this request starts one, and is served what is there. The more requests, the sooner one of them
draws a long time; what nobody reads is not refreshed.
"""

from __future__ import annotations

from math import floor, log
from typing import Final

CUT: Final = 30.0
"""A longer draw than so many means is as good as never: one in 10**13."""

# Seconds: a refresh takes this long even if the upstream answers at once, with two trips to Redis and a busy loop.
MIN_COST: Final = 0.01


def window(received: float, expires: float, cost: float, beta: float) -> float:
    """The moment before which no request has to draw.

    It does not begin in the first half of an answer's time: a short one that takes long to fetch is not fetched all
    the time.

    Args:
        received: when the answer came, in seconds since 1970.
        expires: when it ends.
        cost: seconds that its fetch took.
        beta: how many times that cost the mean draw is; 0: never refresh early.
    """
    if not beta:
        return expires
    # A whole second: a draw more changes nothing, and answers that end in the same second share the number.
    begins = float(floor(expires - CUT * beta * max(cost, MIN_COST)))
    return min(expires, max(begins, (received + expires) / 2))


def due(now: float, expires: float, cost: float, beta: float, random: float) -> bool:
    """Whether this request is to start a refresh; not to be asked before the `window`.

    Args:
        now: seconds since 1970.
        expires, cost, beta: see `window`.
        random: evenly distributed in [0, 1).
    """
    return now - beta * max(cost, MIN_COST) * log(1.0 - random) >= expires
