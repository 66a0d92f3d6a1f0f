"""Early refresh by chance."""

from __future__ import annotations

from collections.abc import Callable
from math import exp
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugins.cache.early import CUT, MIN_COST, due, window
from plugins.cache.entry import Entry, decode, encode
from plugins.cache.policy import Plan
from tests.conftest import StartGateway
from tests.harness import COMPILED, UpstreamServer, eventually
from tests.plugins.cache.conftest import Client, Clock

NOW = 1_800_000_000.0
spans = st.floats(0.0, 10_000.0)
betas = st.floats(0.0, 100.0)
draws = st.floats(0.0, 1.0, exclude_max=True)


@given(life=spans, cost=spans, beta=betas)
def test_the_window_lies_in_the_second_half_of_the_life(life: float, cost: float, beta: float) -> None:
    begins = window(NOW, NOW + life, cost, beta)
    assert NOW + life / 2 <= begins + 1e-6
    assert begins <= NOW + life


@given(life=spans, cost=spans)
def test_without_beta_there_is_no_window(life: float, cost: float) -> None:
    assert window(NOW, NOW + life, cost, 0) == NOW + life


def test_answers_that_end_in_the_same_second_share_where_the_window_begins() -> None:
    """Also the number's object, once they are read: a worker keeps very many."""
    plans = [Plan(0.0, window(0.0, end, 1.0, 1.0), end, end, end, end, False, ()) for end in (600.2, 600.7)]
    one, other = [decode(encode(Entry(200, plan, b"", frozenset(), b""))) for plan in plans]
    assert isinstance(one, Entry)
    assert isinstance(other, Entry)
    assert one.plan.refresh_from == 600.0 - CUT
    if not COMPILED:  # where a plan has the numbers themselves, not objects
        assert one.plan.refresh_from is other.plan.refresh_from


@given(cost=spans, beta=betas, draw=draws, before=spans)
def test_what_has_ended_is_due(cost: float, beta: float, draw: float, before: float) -> None:
    assert due(NOW, NOW - before, cost, beta, draw)


@given(left=spans, cost=spans, beta=betas, draw=draws, later=spans, longer=draws)
def test_what_is_due_stays_due_later_and_for_longer_draws(
    left: float, cost: float, beta: float, draw: float, later: float, longer: float
) -> None:
    if due(NOW, NOW + left, cost, beta, draw):
        assert due(NOW + later, NOW + left, cost, beta, draw)
        assert due(NOW, NOW + left, cost, beta, max(draw, longer))


@pytest.mark.parametrize("cost", [0.3, 2.0, MIN_COST])
@pytest.mark.parametrize("beta", [0.5, 1.0, 3.0])
def test_the_chance_is_that_of_the_paper(cost: float, beta: float) -> None:
    random = Random(1)
    mean = beta * cost
    for means in (0.5, 1.0, 2.0):
        drawn = sum(due(NOW, NOW + means * mean, cost, beta, random.random()) for _ in range(20_000))
        assert drawn / 20_000 == pytest.approx(exp(-means), abs=0.015)


def test_before_the_window_the_chance_is_negligible() -> None:
    left = 1000.0 - (window(0.0, 1000.0, 1.0, 1.0))
    assert left == CUT
    assert exp(-CUT) < 1e-13


def test_the_busier_the_sooner_and_never_too_late_under_load() -> None:
    """A simulated minute of requests at a steady pace: when the first refresh begins, and how often it is in time."""
    random = Random(2)
    cost, expires = 0.3, 60.0

    def lead(rate: int) -> float:
        moments = (window(0.0, expires, cost, 1.0) + number / rate for number in range(60 * rate))
        return expires - next(now for now in moments if due(now, expires, cost, 1.0, random.random()))

    slow = [lead(10) for _ in range(200)]
    fast = [lead(1000) for _ in range(200)]
    assert sum(fast) > sum(slow)
    # A refresh that begins at least its own cost before the end is there in time: nobody waits.
    assert sum(begun >= cost for begun in fast) >= 199
    assert max(fast) < CUT * cost


async def test_who_draws_a_refresh_is_served_what_is_there_and_the_next_one_what_is_new(
    gateway: StartGateway, upstream: UpstreamServer, ask: Client, say: Callable[..., None], clock: Clock
) -> None:
    node = await gateway({"plugins": {"cache": {}}})
    plugin: Any = node.plugins["cache"]
    clock.stand(node)
    say("/a", "max-age=100")
    await ask(node)
    longest, shortest = 1 - 1e-10, 0.0
    plugin.chance = lambda: longest
    clock.pass_by(99)
    assert (await ask(node)).body == b"/a 1"
    assert upstream.count("/a") == 1, "the window has not begun"
    plugin.chance = lambda: shortest
    clock.pass_by(0.9)
    assert (await ask(node)).body == b"/a 1"
    assert upstream.count("/a") == 1, "it has, but nobody has drawn"
    plugin.chance = lambda: longest
    got = await ask(node)
    assert (got.cache, got.body) == ("HIT", b"/a 1")

    async def refreshed() -> bool:
        got = await ask(node)
        assert got.cache == "HIT"
        return got.body == b"/a 2"

    await eventually(refreshed)
    assert upstream.count("/a") == 2
