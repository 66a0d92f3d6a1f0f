"""When a link connects again, and what the log has of it: by a clock of the tests, and with a server that closes."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.seldom import COMPLAINT_PAUSE_SECONDS
from gateway.store.attempts import LASTING_SECONDS, Attempts
from tests.harness import eventually
from tests.relay import Relay
from tests.store.conftest import MakeStore

BASE, LONGEST = 0.05, 2.0
KINDS = ("is down", "cannot connect", "is up")


def longest_pauses() -> Attempts:
    return Attempts("main", BASE, LONGEST, lambda low, high: high)


def kinds(caplog: pytest.LogCaptureFixture) -> Counter[str]:
    return Counter(kind for record in caplog.records for kind in KINDS if kind in record.getMessage())


@given(st.lists(st.floats(0, 5), max_size=50), st.floats(0.001, 3))
def test_a_pause_is_within_its_bounds_whatever_happens(lasting: list[float], longest: float) -> None:
    link, now = Attempts("main", BASE, longest), 0.0
    for lasted in lasting:
        if lasted:
            link.made(now, "")
            now += lasted
            link.lost(now, "gone")
        else:
            link.failed(now, "refused")
        pause = link.pause()
        assert 0 <= pause <= longest
        now += pause


def test_one_that_lasted_is_made_again_soon_and_those_that_do_not_ever_later() -> None:
    link, now, pauses = longest_pauses(), 0.0, []
    for lasted in [0.1] * 8 + [LASTING_SECONDS] + [0.0] * 3:
        link.made(now, "")
        now += lasted
        link.lost(now, "closed")
        pauses.append(link.pause())
        now += pauses[-1]
    assert pauses == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 0.05, 0.1, 0.2, 0.4]


def test_an_outage_is_told_in_three_lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gateway.redis")
    link = longest_pauses()
    for number in range(3):  # also the second within ten seconds
        now = 5.0 * number
        link.made(now, "valkey 9")
        link.lost(now + 3, "closed")
        for _ in range(20):
            link.failed(now + 4, "refused")
    link.made(20.0, "valkey 9")
    assert kinds(caplog) == {"is down": 3, "cannot connect": 3, "is up": 3}


def test_what_comes_and_goes_is_told_once_in_a_while_and_the_last_word_is_true(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "gateway.redis")
    link, now = longest_pauses(), 0.0
    while now < 3 * COMPLAINT_PAUSE_SECONDS:
        link.made(now, "valkey 9")
        link.lost(now + 0.5, "closed")
        now += 1
    assert kinds(caplog) == {"is down": 3, "is up": 3}
    assert "closed (and 9 times before, soon after it was up)" in caplog.text
    caplog.clear()
    while now < 5 * COMPLAINT_PAUSE_SECONDS:
        link.failed(now, "refused")
        now += 1
    assert kinds(caplog) == {"cannot connect": 1}
    link.made(now, "valkey 9")
    assert "is up" in caplog.records[-1].getMessage()


async def test_a_server_that_lets_everybody_in_and_closes_at_once(
    make: MakeStore, relay: Relay, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "gateway.redis")
    monkeypatch.setattr("gateway.store.attempts.LASTING_SECONDS", 0.8)
    store = await make(relay.url, backoff_base=0.02, backoff_max=0.8)
    loop = asyncio.get_running_loop()
    link = store.links[0]
    link._attempts._draw = lambda low, high: high

    async def cut() -> float:
        """How long it took until the link was up again."""
        relay.cut()
        await eventually(lambda: not link.up, every=0.001)
        lost = loop.time()
        await eventually(lambda: link.up, every=0.001)
        return loop.time() - lost

    for least in (0.02, 0.04, 0.08, 0.16, 0.32):
        assert await cut() > least - 0.01
    found = kinds(caplog)
    assert found["is down"] <= 2, "one for each link, however often"
    assert found["is up"] <= 2
    came = loop.time()
    await eventually(lambda: loop.time() - came > 0.8)
    assert await cut() < 0.6, "one that lasted is made again soon"
    assert kinds(caplog)["is down"] > found["is down"]
