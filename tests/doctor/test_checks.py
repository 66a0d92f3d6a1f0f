"""Each check from what a server told to what a user is told."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.doctor import checks
from gateway.doctor.checks import look
from gateway.doctor.findings import Finding, Level
from gateway.doctor.keys import Sample
from gateway.doctor.readings import Clock, Slow, Unread
from gateway.doctor.words import percentile
from gateway.plugin import Script

CRITICAL, WARNING, UNKNOWN, OK = Level
MIB = 1 << 20
TAKE = Script(
    "return redis.call('GET', KEYS[1]) -- and a comment that is long enough for the slow log to cut it", "take.lua"
)


@pytest.mark.parametrize(
    ("hello", "level"),
    [
        ({"server": "redis", "version": "7.0.15"}, OK),
        ({"server": "valkey", "version": "9.1.2"}, OK),
        ({"server": "redis", "version": "10.0.0-rc1"}, OK),
        ({"server": "redis", "version": "6.2.14"}, CRITICAL),
        ({"version": "5.0"}, CRITICAL),
        ({"server": "odd", "version": "unstable"}, OK),
    ],
)
def test_version(hello, level):
    finding = checks.version(hello)
    assert finding.level is level
    assert hello["version"] in finding.found


@pytest.mark.parametrize(
    ("hello", "kind", "level", "hint"),
    [
        ({"mode": "standalone", "role": "master"}, "single", OK, ""),
        ({"mode": "standalone", "role": "replica"}, "single", CRITICAL, "primary's address"),
        ({"mode": "standalone", "role": "replica"}, "sentinel", OK, ""),
        ({"mode": "cluster", "role": "replica"}, "cluster", OK, ""),
        ({"mode": "cluster", "role": "master"}, "single", CRITICAL, "redis+cluster://"),
        ({"mode": "sentinel", "role": "sentinel"}, "single", CRITICAL, "redis+sentinel://"),
    ],
)
def test_role(hello, kind, level, hint):
    finding = checks.role(hello, kind)
    assert finding.level is level
    assert hint in finding.hint


@pytest.mark.parametrize(
    ("info", "save", "keeps", "level", "said"),
    [
        ({"aof_enabled": 1}, "", ["session"], OK, "append-only"),
        ({"aof_enabled": 0}, "", ["session", "token_blacklist"], WARNING, "session, token_blacklist keep"),
        ({"aof_enabled": 0}, "", [], OK, "none"),
        ({"aof_enabled": 0}, "3600 1", ["session"], WARNING, "since the last snapshot"),
        ({"aof_enabled": 0}, Unread("no"), ["session"], WARNING, "no append-only file"),
        ({"aof_enabled": 0}, "3600 1", [], OK, "snapshots"),
        ({"aof_enabled": 1, "aof_last_write_status": "err"}, "", [], CRITICAL, "append-only file failed"),
        ({"aof_enabled": 1, "rdb_last_bgsave_status": "err"}, "", [], CRITICAL, "MISCONF"),
        ({"aof_enabled": 1, "loading": 1}, "", [], CRITICAL, "loading"),
    ],
)
def test_persistence(info, save, keeps, level, said):
    finding = checks.persistence(info, save, keeps)
    assert finding.level is level
    assert said in f"{finding.found} {finding.hint}"


@pytest.mark.parametrize(
    ("info", "memory", "eviction"),
    [
        ({"maxmemory": 0, "maxmemory_policy": "noeviction"}, WARNING, WARNING),
        ({"maxmemory": MIB, "maxmemory_policy": "noeviction"}, OK, CRITICAL),
        ({"maxmemory": MIB, "maxmemory_policy": "allkeys-lfu"}, OK, OK),
        ({"maxmemory": MIB, "maxmemory_policy": "volatile-lru"}, OK, OK),
        ({"maxmemory": MIB, "maxmemory_policy": "allkeys-random"}, OK, WARNING),
        ({"maxmemory": MIB, "maxmemory_policy": "volatile-ttl"}, OK, WARNING),
        ({"maxmemory": MIB, "maxmemory_policy": "allkeys-lfu", "evicted_keys": 7}, OK, WARNING),
    ],
)
def test_memory_and_eviction(info, memory, eviction):
    assert checks.memory(info).level is memory
    finding = checks.eviction(info, ["session"])
    assert finding.level is eviction
    assert bool(finding.hint) == (eviction is not OK)


def test_eviction_costs_nothing_where_nothing_must_stay():
    info = {"maxmemory": MIB, "maxmemory_policy": "allkeys-lfu", "evicted_keys": 7}
    assert checks.eviction(info, []).level is OK
    assert "session" in checks.eviction(info, ["session"]).hint


@pytest.mark.parametrize(
    ("used", "ratio", "level"),
    [(MIB, 6.6, OK), (100 * MIB, 1.1, OK), (100 * MIB, 1.9, WARNING), (100 * MIB, 0.5, WARNING)],
)
def test_fragmentation(used, ratio, level):
    assert checks.fragmentation({"used_memory": used, "mem_fragmentation_ratio": ratio}).level is level


def workers(nodes: int, each: int) -> list[str]:
    return [f"gateway-{node:08x}.{worker}" for node in range(nodes) for worker in range(each) for _ in range(2)]


@pytest.mark.parametrize(
    ("most", "clients", "level", "said"),
    [
        (10_000, [*workers(3, 4), "gateway-admin", "gateway-console", "app"], OK, "3 nodes 24 (48 while"),
        (10_000, [], OK, "1 node 8 (16 while"),
        (10_000, Unread("no"), OK, "not told"),
        (26, [*workers(3, 4), "app"], WARNING, "by others 1"),
        (20, [*workers(2, 2), *["app"] * 12], CRITICAL, "by others 12"),
    ],
)
def test_connections(most, clients, level, said):
    count = 0 if isinstance(clients, Unread) else len(clients)
    finding = checks.connections({"maxclients": most, "connected_clients": count}, clients, workers=4)
    assert said in finding.found
    assert finding.level is level


@given(st.integers(0, 50), st.integers(1, 64), st.integers(0, 500), st.integers(1, 5000))
def test_connections_is_critical_exactly_if_somebody_finds_no_room(nodes, each, others, most):
    names = [*workers(nodes, each), *["app"] * others]
    info = {"maxclients": most, "connected_clients": len(names)}
    needed = 2 * each * max(1, nodes)
    assert (checks.connections(info, names, workers=each).level is CRITICAL) == (needed + others > most)


def replica(state: str, offset: int, lag: int) -> dict[str, Any]:
    return {"ip": "10.0.0.2", "port": 6379, "state": state, "offset": offset, "lag": lag}


@pytest.mark.parametrize(
    ("info", "kind", "level", "said"),
    [
        ({"role": "master"}, "single", OK, "none"),
        ({"role": "master"}, "cluster", WARNING, "nobody takes over"),
        ({"role": "master"}, "sentinel", WARNING, "nobody takes over"),
        ({"role": "master", "master_repl_offset": 5120, "slave0": replica("online", 4096, 0)}, "single", OK, "1.0 KiB"),
        ({"role": "master", "slave0": replica("online", 0, 9)}, "single", WARNING, "10.0.0.2:6379 (online, 9 s)"),
        ({"role": "master", "slave0": replica("wait_bgsave", 0, 0)}, "sentinel", WARNING, "wait_bgsave"),
        ({"role": "slave", "master_link_status": "up", "slave_priority": 100}, "cluster", OK, "up"),
        ({"role": "slave", "master_link_status": "down"}, "cluster", WARNING, "lost its primary"),
        ({"role": "master", "slave_expires_tracked_keys": 0}, "single", OK, "none"),
    ],
)
def test_replicas(info, kind, level, said):
    finding = checks.replicas(info, kind)
    assert finding.level is level
    assert said in f"{finding.found} {finding.hint}"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (f"EVALSHA {TAKE.sha.decode()} 1 gateway:rate:x 5", "ours: take.lua ×1"),
        (f"EVAL_RO {TAKE.source.decode()[:60]}", "ours: take.lua ×1"),
        ("SET gateway:cache:x secret... (872 more bytes)", "ours: SET ×1"),
    ],
)
def test_slow_log_knows_what_is_ours(command, said):
    finding = checks.slow_log([Slow(0.02, command)], [TAKE], "gateway", 0.25)
    assert finding.level is WARNING
    assert said in finding.found
    assert "20 ms" in finding.found


def test_slow_log_of_others_matters_once_it_holds_requests_up_and_is_not_shown():
    entries = [Slow(0.1, "KEYS secret*"), Slow(0.02, f"EVALSHA {'0' * 40} 0 secret")]
    assert checks.slow_log(entries, [TAKE], "gateway", 0.25).level is OK
    finding = checks.slow_log([*entries, Slow(0.3, "keys secret*")], [TAKE], "gateway", 0.25)
    assert finding.level is WARNING
    assert "KEYS ×2 (up to 300 ms)" in finding.found
    assert "secret" not in finding.found + finding.hint


@pytest.mark.parametrize(
    ("trips", "level"),
    [([0.0002] * 200, OK), ([0.0002] * 199 + [9.0], OK), ([0.0002] * 190 + [0.06] * 10, WARNING), ([0.3], CRITICAL)],
)
def test_latency(trips, level):
    finding = checks.latency(trips, timeout=0.25)
    assert finding.level is level
    assert f"of {len(trips)} pings" in finding.found


@given(st.lists(st.floats(0, 10), min_size=1, max_size=300), st.sampled_from([50, 99, 100]))
def test_percentile_is_the_smallest_that_enough_are_not_above(values, percent):
    found = percentile(values, percent)
    assert sum(value <= found for value in values) * 100 >= percent * len(values)
    below = [value for value in values if value < found]
    assert not below or sum(value <= max(below) for value in values) * 100 < percent * len(values)


@pytest.mark.parametrize(
    ("ahead", "accuracy", "level", "said"),
    [
        (0.0001, 0.0002, OK, "0.20 ms"),
        (1.2, 0.5, OK, "within"),
        (1.7, 0.5, WARNING, "1.2 s ahead"),
        (-90.0, 0.001, CRITICAL, "90.0 s behind"),
    ],
)
def test_clock(ahead, accuracy, level, said):
    finding = checks.clock(Clock(ahead, accuracy))
    assert finding.level is level
    assert said in finding.found


@given(st.floats(-100, 100), st.floats(0, 100))
def test_a_slow_network_alone_never_makes_a_clock_wrong(ahead, accuracy):
    finding = checks.clock(Clock(ahead, accuracy))
    assert (finding.level is OK) == (abs(ahead) - accuracy < checks.CLOCK_WARNING)


def sampled(*keys: tuple[bytes, int, Any], **more: Any) -> Sample:
    sample = Sample(**more)
    for key in keys:
        sample.add(*key)
    return sample


def test_keys_without_an_end_are_named_without_the_secret_in_them():
    sample = sampled(
        (b"gateway:session:0123456789abcdef", -1, 80), (b"gateway:\x1b[31m", -1, 80), all_keys=9, looked_at=4
    )
    finding = checks.endless(sample)
    assert finding.level is WARNING
    assert finding.found == "2 among 2 of ours, seen in 4 of 9 keys"
    assert "gateway:session:01234567..." in finding.hint
    assert "89abcdef" not in finding.hint
    assert "\x1b" not in finding.hint
    assert checks.endless(sampled((b"gateway:a", 5, 80), (b"gateway:b", -2, None), complete=True)).level is OK


def test_biggest_keys():
    small = sampled(*[(f"gateway:{number}".encode(), 5, number) for number in range(20)])
    assert checks.biggest(small).found.startswith("gateway:19 19 B, gateway:18 18 B")
    assert checks.biggest(small).level is OK
    assert checks.biggest(sampled((b"gateway:big", 5, 20 * MIB))).level is WARNING
    assert checks.biggest(sampled(complete=True)).level is OK


def test_what_could_not_be_read_is_unknown_and_says_which_right_is_missing():
    def never(_: Any) -> Finding:
        raise AssertionError

    finding = look("eviction", Unread("the user may not look", "+info"), never)
    assert (finding.check, finding.level) == ("eviction", UNKNOWN)
    assert "+info" in finding.hint


def test_every_problem_comes_with_what_to_do():
    infos = [
        {"maxmemory": most, "maxmemory_policy": policy, "used_memory": 100 * MIB, "mem_fragmentation_ratio": 3}
        for most in (0, MIB)
        for policy in ("noeviction", "allkeys-random", "allkeys-lfu")
    ]
    for info in infos:
        for finding in (checks.memory(info), checks.eviction(info, ["session"]), checks.fragmentation(info)):
            assert finding.level is OK or finding.hint
