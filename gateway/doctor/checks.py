"""From what one server told to findings: each check is a pure function, and says from where on it is a problem."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

from gateway.doctor.findings import Finding, Level
from gateway.doctor.keys import Sample
from gateway.doctor.readings import Clock, Slow, Unread
from gateway.doctor.words import percentile, printable, size, span
from gateway.plugin import Script
from gateway.store.handshake import LOWEST_VERSION
from gateway.store.redis import shown
from gateway.store.url import Kind

MIB: Final = 1 << 20
LINKS_PER_WORKER: Final = 2
"""Connections of a worker to each server: one for decisions and one for bodies."""
RELOAD: Final = 2
"""While a gateway reloads, its old and its new workers are connected."""
MUCH_MEMORY: Final = 64 * MIB
"""Below that, the server's own overhead makes fragmentation look bad."""
FRAGMENTED: Final = 1.5
SWAPPED: Final = 0.9
"""What the process takes, in parts of what it has in it, is to be between the two."""
FAR_AWAY: Final = 0.2
"""Share of `redis.timeout` that a slow ping (p99) may take."""
CLOCK_WARNING: Final = 1.0
CLOCK_CRITICAL: Final = 30.0
LAG: Final = 5.0
"""Seconds; a replica that is well tells how far it is once a second."""
BIG: Final = 16 * MIB
SHOWN: Final = 5
"""So many slow commands are named."""
NEARLY: Final = 0.8
"""Share of `maxclients` that may be taken."""
WORKER: Final = re.compile(r"gateway-([0-9a-f]{8})(?:\.[0-9]+)?")
"""What a worker's connections are called: by its node, and its own number behind a dot."""
KEEPING: Final = ("lfu", "lru")
GRANT: Final = "grant {} to a user for this command: see `gateway doctor --acl`"

T = TypeVar("T")


def look(check: str, read: T | Unread, examine: Callable[[T], Finding]) -> Finding:
    """The finding, or UNKNOWN where the server did not tell."""
    if isinstance(read, Unread):
        hint = GRANT.format(read.rule) if read.rule else ""
        return Finding(check, Level.UNKNOWN, read.why, hint)
    return examine(read)


# -- the server ------------------------------------------------------------------------------------


def version(hello: Mapping[str, str]) -> Finding:
    """Redis 7 or Valkey: before, pushes can land inside a reply."""
    name, number = hello.get("server", "redis"), hello.get("version", "?")
    numbers = tuple(int(part) for part in number.split(".")[:2] if part.isdigit())
    found = f"{name.capitalize()} {number}"
    if numbers and numbers < LOWEST_VERSION:
        return Finding("version", Level.CRITICAL, found, "the gateway does not use it: upgrade to Redis 7 or Valkey")
    return Finding("version", Level.OK, found)


def role(hello: Mapping[str, str], kind: Kind) -> Finding:
    """Whether the URL's scheme fits the server behind it."""
    mode, is_replica = hello.get("mode", "standalone"), hello.get("role", "master") != "master"
    if mode == "sentinel":
        hint = "write it as redis+sentinel://HOST,HOST/SERVICE"
        return Finding("role", Level.CRITICAL, "this is a Sentinel, not a server with data", hint)
    if mode == "cluster" and kind != "cluster":
        hint = "write it as redis+cluster://HOST,HOST"
        return Finding("role", Level.CRITICAL, "a node of a cluster: it refuses most keys", hint)
    if is_replica and kind == "single":
        hint = "give its primary's address, or redis+sentinel://HOST,HOST/SERVICE"
        return Finding("role", Level.CRITICAL, "a replica: it refuses writes", hint)
    return Finding("role", Level.OK, f"{'replica' if is_replica else 'primary'}, {mode}")


def persistence(info: Mapping[str, Any], save: str | Unread, keeps: Sequence[str]) -> Finding:
    """What a restart leaves.

    Args:
        save: CONFIG GET save.
        keeps: plugins that refuse without Redis: what they have in it is not to be lost.
    """
    check = "persistence"
    if info.get("loading"):
        return Finding(check, Level.CRITICAL, "it is loading its data and answers nothing yet", "wait")
    failed = [
        name
        for name, key in (("the snapshot", "rdb_last_bgsave_status"), ("the append-only file", "aof_last_write_status"))
        if info.get(key, "ok") != "ok"
    ]
    if failed:
        hint = "see the server's log (a full disk, most often): it may refuse all writes until then (MISCONF)"
        return Finding(check, Level.CRITICAL, f"the last write of {' and '.join(failed)} failed", hint)
    if info.get("aof_enabled"):
        return Finding(check, Level.OK, "append-only file")
    lost = f"what {', '.join(keeps)} keep{'s' if len(keeps) == 1 else ''} in it"
    if isinstance(save, Unread) or save:
        found = "no append-only file" if isinstance(save, Unread) else f"snapshots (save {save})"
        hint = f"a crash loses {lost} since the last snapshot: CONFIG SET appendonly yes" if keeps else ""
        return Finding(check, Level.WARNING if keeps else Level.OK, found, hint)
    hint = f"a restart loses {lost}: CONFIG SET appendonly yes" if keeps else ""
    return Finding(check, Level.WARNING if keeps else Level.OK, "none", hint)


def memory(info: Mapping[str, Any]) -> Finding:
    """A limit, so that the kernel does not set one."""
    used, most = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
    if most:
        return Finding("maxmemory", Level.OK, f"{size(used)} of {size(most)} in use")
    machine = int(info.get("total_system_memory", 0))
    of = f" (the machine has {size(machine)})" if machine else ""
    hint = "CONFIG SET maxmemory to what it may take: without, it grows until the kernel kills it"
    return Finding("maxmemory", Level.WARNING, f"not set; {size(used)} in use{of}", hint)


def eviction(info: Mapping[str, Any], keeps: Sequence[str]) -> Finding:
    """What happens once the memory is full."""
    check = "eviction"
    policy, most = str(info.get("maxmemory_policy", "?")), int(info.get("maxmemory", 0))
    evicted = int(info.get("evicted_keys", 0))
    change = "CONFIG SET maxmemory-policy allkeys-lfu; volatile-lfu if others keep keys without an end in it"
    if policy == "noeviction":
        if not most:
            found = "noeviction, which means nothing as long as maxmemory is not set"
            return Finding(check, Level.WARNING, found, f"with maxmemory: {change}")
        found = f"noeviction: at {size(most)} all writes are refused, so nothing is counted, kept alive or cached"
        return Finding(check, Level.CRITICAL, found, change)
    if not policy.endswith(KEEPING):
        return Finding(check, Level.WARNING, f"{policy}: what is used most goes as soon as anything else", change)
    found = f"{policy}, {evicted:,} keys dropped so far"
    if evicted and keeps:
        hint = (
            f"keys of {', '.join(keeps)} may be among them, as if never written: whom a key let in is out, whom it kept"
            " out is in; raise maxmemory until this count stays"
        )
        return Finding(check, Level.WARNING, found, hint)
    return Finding(check, Level.OK, found)


def fragmentation(info: Mapping[str, Any]) -> Finding:
    """What the process takes beside what it has in it."""
    check = "fragmentation"
    used, ratio = int(info.get("used_memory", 0)), float(info.get("mem_fragmentation_ratio", 1.0))
    if used < MUCH_MEMORY:
        return Finding(check, Level.OK, f"says nothing below {size(MUCH_MEMORY)} in use")
    if ratio > FRAGMENTED:
        hint = "CONFIG SET activedefrag yes, or restart a replica and fail over to it"
        return Finding(check, Level.WARNING, f"the process takes {ratio:.2f} times what it has in it", hint)
    if ratio < SWAPPED:
        hint = "give the machine more memory, or lower maxmemory: a page that comes from disk stalls all clients"
        return Finding(check, Level.WARNING, f"only {ratio:.0%} of what it has in it is in memory: it swaps", hint)
    return Finding(check, Level.OK, f"{ratio:.2f}")


def connections(info: Mapping[str, Any], clients: Sequence[str] | Unread, workers: int) -> Finding:
    """Whether there is room for all workers.

    Args:
        clients: names of all connections.
        workers: of a gateway with this configuration.
    """
    check = "maxclients"
    most, open_now = int(info.get("maxclients", 0)), int(info.get("connected_clients", 0))
    names = [] if isinstance(clients, Unread) else clients
    seen = Counter(match[1] for name in names if (match := WORKER.fullmatch(name)))
    nodes = max(1, len(seen))
    each = max([workers * LINKS_PER_WORKER, *seen.values()])
    need, others = nodes * each, open_now - seen.total()
    found = (
        f"{most:,}; needed by {nodes} node{'s' if nodes > 1 else ''} {need:,} ({need * RELOAD:,} while they reload),"
        f" by others {others:,}"
    )
    if isinstance(clients, Unread):
        found += "; how many nodes there are was not told"
    hint = f"CONFIG SET maxclients {(others + need * RELOAD) * 2}, and its ulimit -n: who comes later is refused"
    if need + others > most:
        return Finding(check, Level.CRITICAL, found, hint)
    if need * RELOAD + others > most * NEARLY:
        return Finding(check, Level.WARNING, found, hint)
    return Finding(check, Level.OK, found)


def replicas(info: Mapping[str, Any], kind: Kind) -> Finding:
    """Who takes over, and how much would be lost with the primary."""
    check = "replicas"
    if info.get("role") == "slave":
        if info.get("master_link_status") == "up":
            return Finding(check, Level.OK, "up with its primary")
        hint = "see its log: it must not take over before it is up again"
        return Finding(check, Level.WARNING, "it has lost its primary", hint)
    known: list[dict[str, Any]] = [info[key] for key in info if key[:5] == "slave" and key[5:].isdigit()]
    if not known:
        if kind == "single":
            return Finding(check, Level.OK, "none")
        return Finding(check, Level.WARNING, "none: if it is lost, nobody takes over", "add a replica")
    end = int(info.get("master_repl_offset", 0))
    behind = max(end - int(one.get("offset", 0)) for one in known)
    late = [one for one in known if one.get("state") != "online" or float(one.get("lag", 0)) > LAG]
    found = f"{len(known)}, at most {size(max(0, behind))} behind"
    if late:
        names = ", ".join(f"{one.get('ip')}:{one.get('port')} ({one.get('state')}, {one.get('lag')} s)" for one in late)
        hint = f"what it has not got is lost in a failover: look at {names}"
        return Finding(check, Level.WARNING, f"{found}; {len(late)} late", hint)
    return Finding(check, Level.OK, found)


# -- how it does -----------------------------------------------------------------------------------


def slow_log(entries: Sequence[Slow], scripts: Sequence[Script], prefix: str, timeout: float) -> Finding:
    """What of ours was slow, and what of others that held us up: one command runs at a time.

    Args:
        timeout: `redis.timeout`.
    """
    check = "slow log"
    mine: dict[str, list[float]] = {}
    others: dict[str, list[float]] = {}
    for entry in entries:
        name = _ours(entry.command, scripts, prefix)
        # What others' commands were about is not ours to show.
        group, name = (mine, name) if name else (others, entry.command.partition(" ")[0].upper())
        group.setdefault(name, []).append(entry.seconds)
    waited = {name: times for name, times in others.items() if max(times) >= timeout}
    if waited:
        hint = f"others' commands held all requests up for longer than redis.timeout ({span(timeout)}): see SLOWLOG GET"
        also = f"; ours: {_counts(mine)}" if mine else ""
        return Finding(check, Level.WARNING, f"others': {_counts(waited)}{also}", hint)
    if mine:
        hint = "keys that are too big, or a server that has too little CPU; SLOWLOG RESET starts anew"
        return Finding(check, Level.WARNING, f"ours: {_counts(mine)}", hint)
    count = len(entries)
    return Finding(check, Level.OK, f"none of ours among {count} entries" if count else "empty")


def _counts(slow: Mapping[str, Sequence[float]]) -> str:
    """Each command, how often, and its slowest."""
    return ", ".join(
        f"{printable(name)} ×{len(times)} (up to {span(max(times))})"
        for name, times in sorted(slow.items(), key=lambda one: -max(one[1]))[:SHOWN]
    )


def _ours(command: str, scripts: Sequence[Script], prefix: str) -> str:
    """What a command of the gateway is called; empty for others'."""
    name, _, rest = command.partition(" ")
    name = name.upper()
    if name == "EVALSHA":
        sha = rest.partition(" ")[0].encode()
        return next((script.name for script in scripts if script.sha == sha), "")
    if name.startswith("EVAL"):
        # The log has the first 128 bytes of a source.
        begin = rest.encode()[:100]
        return next((script.name for script in scripts if begin and script.source.startswith(begin)), "")
    return name if rest.startswith(f"{prefix}:") else ""


def latency(trips: Sequence[float], timeout: float) -> Finding:
    """How far away it is, in round trips."""
    middle, slow = percentile(trips, 50), percentile(trips, 99)
    found = f"p50 {span(middle)}, p99 {span(slow)} of {len(trips)} pings"
    if slow >= timeout:
        hint = f"many requests would not get their reply within redis.timeout ({span(timeout)}): move closer together"
        return Finding("latency", Level.CRITICAL, found, hint)
    if slow >= timeout * FAR_AWAY:
        hint = f"little is left of redis.timeout ({span(timeout)}): see what else runs on its machine and the network"
        return Finding("latency", Level.WARNING, found, hint)
    return Finding("latency", Level.OK, found)


def clock(read: Clock) -> Finding:
    """Theirs against ours: sessions, tokens and stored answers end by the clock."""
    off = max(0.0, abs(read.ahead) - read.accuracy)
    direction = "ahead of" if read.ahead > 0 else "behind"
    if off < CLOCK_WARNING:
        return Finding("clock", Level.OK, f"within {span(max(off, read.accuracy))} of this machine's")
    level = Level.CRITICAL if off >= CLOCK_CRITICAL else Level.WARNING
    hint = "run NTP (chrony, systemd-timesyncd) on both: sessions, tokens and stored answers end by the clock"
    return Finding("clock", level, f"{span(off)} {direction} this machine's", hint)


# -- our keys --------------------------------------------------------------------------------------


def endless(sample: Sample) -> Finding:
    """All of our keys end: one that does not stays for ever."""
    check, looked = "keys without TTL", _looked(sample)
    if not sample.without_ttl:
        return Finding(check, Level.OK, f"none {looked}")
    names = ", ".join(dict.fromkeys(printable(shown(name)) for name in sample.named))
    more = ", ..." if sample.without_ttl > len(sample.named) else ""
    hint = f"{names}{more}: the gateway writes none, so see which application does, and EXPIRE them"
    return Finding(check, Level.WARNING, f"{sample.without_ttl:,} {looked}", hint)


def biggest(sample: Sample) -> Finding:
    """A big key holds everybody up while it is read, and while it is freed."""
    check = "biggest keys"
    if not sample.weighed:
        return Finding(check, Level.UNKNOWN, "the user may not look", GRANT.format("+memory|usage"))
    if not sample.biggest:
        return Finding(check, Level.OK, f"none {_looked(sample)}")
    # Cut names may be the same: the biggest of them stands for all.
    named = {printable(shown(name)): count for count, name in reversed(sample.biggest)}
    names = ", ".join(f"{name} {size(count)}" for name, count in reversed(named.items()))
    if sample.biggest[0][0] >= BIG:
        hint = "everybody waits while one is read: lower max_body of what stores it, or see which application wrote it"
        return Finding(check, Level.WARNING, names, hint)
    return Finding(check, Level.OK, names)


def _looked(sample: Sample) -> str:
    if sample.complete:
        return f"among all {sample.ours:,} of ours"
    return f"among {sample.ours:,} of ours, seen in {sample.looked_at:,} of {sample.all_keys:,} keys"
