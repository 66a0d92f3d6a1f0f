"""The most important lines of the table, played quickly. `make chaos` has all of them."""

from __future__ import annotations

import asyncio

import pytest

from tests.chaos.findings import Findings
from tests.chaos.load import LIMIT
from tests.chaos.scenarios import client_kill, flushall, named, script_flush
from tests.chaos.stage import NODES, Pace, Stage, Topology, Unsupported, play

TIMEOUT = 0.25
SILENCE = 1.0
# A machine that is busy with other tests.
SLACK = 0.5
PACE = Pace(before=1.0, hold=1.5, after=1.5, redis={"timeout": TIMEOUT, "max_silence": SILENCE, "backoff_max": 0.5})


async def played(topology: Topology, name: str, pace: Pace = PACE) -> Findings:
    try:
        return await named(topology, name).run(pace)
    except Unsupported as why:
        pytest.skip(str(why))


def harmless(found: Findings) -> None:
    """What may never happen, whatever happens to Redis."""
    assert found.requests > 500
    assert found.hits > 10
    assert found.revocations > 3
    assert found.open_5xx == 0, found.worst
    assert found.foreign == 0
    assert found.overaged == 0
    # What Redis had counted, and what each node then counts for itself.
    assert found.overshoot <= LIMIT * NODES


async def test_a_redis_that_is_killed_costs_no_time_and_blames_nobody() -> None:
    found = await played("single", "killed, back with its data")
    harmless(found)
    assert found.blamed == 0
    assert found.slowest < TIMEOUT + SLACK, found.worst
    assert found.revoked_accepted < SLACK, found.worst
    assert found.normal_after < 2.0


async def test_a_redis_that_is_stopped_keeps_no_request_waiting_for_long() -> None:
    found = await played("single", "stopped (SIGSTOP)")
    harmless(found)
    assert found.blamed == 0
    # One question to decide with, and one to purge with.
    assert found.slowest < 2 * TIMEOUT + SLACK, found.worst
    assert found.normal_after < 2.0


async def test_a_half_open_connection_keeps_no_revoked_token_alive() -> None:
    found = await played("single", "half-open: answers do not arrive")
    harmless(found)
    assert found.blamed == 0
    assert found.revoked_accepted < SILENCE * 1.25 + SLACK, found.worst


async def test_a_primary_of_a_cluster_that_only_the_gateways_cannot_reach() -> None:
    found = await played("cluster", "one primary partitioned from the gateways: nothing arrives")
    harmless(found)
    assert found.blamed == 0
    assert found.strict_5xx > 0  # it was noticed
    assert found.slowest < 2 * TIMEOUT + SLACK, found.worst
    assert found.revoked_accepted < SILENCE * 1.25 + SLACK, found.worst
    assert found.normal_after < 2.0


async def test_a_redis_that_forgets_everything_logs_users_out_and_does_no_more_harm() -> None:
    async def act(stage: Stage) -> None:
        for forget in (script_flush, client_kill, flushall):
            await forget(stage)
            await asyncio.sleep(0.5)

    found = await play("single", act, PACE)
    harmless(found)
    # Each user is told once, on each node perhaps, that his session is over.
    assert 0 < found.blamed <= 100
    assert found.revoked_accepted < SLACK, found.worst
    assert found.normal_after < 3.0


async def test_sentinels_name_another_primary() -> None:
    found = await played("sentinel", "primary killed, the old one back as a replica")
    harmless(found)
    assert found.blamed == 0
    assert found.revoked_accepted < SILENCE + SLACK, found.worst
    assert found.normal_after < 3.0


async def test_a_replica_of_a_cluster_takes_over() -> None:
    found = await played("cluster", "primary killed, the old one back as a replica")
    harmless(found)
    assert found.blamed == 0
    assert found.revoked_accepted < SILENCE + SLACK, found.worst
    assert found.normal_after < 3.0
