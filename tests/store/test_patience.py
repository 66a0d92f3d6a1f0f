"""How long a task waits for Redis, and what is left of it afterwards."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable, Iterator

import pytest

from gateway.store.patience import end_patience, have_patience, patience, share_patience


@pytest.fixture
def collector_off() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


async def test_it_is_the_task_s_own_until_another_shares_it() -> None:
    have_patience(1.0)
    mine = patience()

    async def shares() -> bool:
        share_patience()
        return patience() is mine

    async def does_not() -> bool:
        return patience() is None

    assert mine is not None
    assert await asyncio.create_task(shares())
    assert await asyncio.create_task(does_not())
    assert patience() is mine
    end_patience()
    assert patience() is None


@pytest.mark.parametrize("begin", [lambda: have_patience(1.0), share_patience])
async def test_what_a_task_came_to_goes_with_it(begin: Callable[[], None], collector_off: None) -> None:
    """Nothing of it waits for the collector, which seldom comes: a cycle for each miss held what had been fetched."""

    class Fetched:
        pass

    async def fetch() -> Fetched:
        begin()
        await asyncio.sleep(0)
        return Fetched()

    have_patience(1.0)
    task = asyncio.create_task(fetch())
    fetched = weakref.ref(await task)
    del task
    await asyncio.sleep(0)  # the callback that has woken us up holds it
    assert fetched() is None
