"""What the gateway's memory is spent on: mirrored entries, and connections that only wait."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from typing import Final

from bench.lab import Lab, prepare
from bench.load import LOAD_CORES, Load, measure
from bench.process import Process
from bench.report import Finding
from bench.rows import ON, Gateway

ENTRIES: Final = 100_000
MIRROR: Final = "256 MiB"
MOST_MIB: Final = 300.0
FILL_SECONDS: Final = 180.0
# Each piece begins with the first one again: one that was too short for all of them is followed by a longer one.
PIECE_SECONDS: Final = 10

CONNECTIONS: Final = 10_000
OTHER_FILES: Final = 200
IDLE_SECONDS: Final = 120.0

MIB: Final = float(1 << 20)


def mirrored(here: Lab, entries: int = ENTRIES) -> Finding:
    """A worker's memory once it has so many different answers of 1 KB in its mirror."""
    here.clear()
    process = here.gateway(Gateway("full mirror", mirror=MIRROR))
    Load("/pass/1k").run(process.port, 1)
    before = process.resident()
    load = Load("/cached/1k", "urls", count=entries)
    deadline = time.monotonic() + FILL_SECONDS
    # The first time an answer is fetched and stored, the second time read into the mirror, the third time it is there.
    seconds = PIECE_SECONDS
    with here.alone():
        while True:
            last = measure(process, load, seconds, here.processes)
            full = last["requests"] >= entries and last["trips"] < 1 / entries
            if full or time.monotonic() > deadline:
                break
            if last["requests"] < entries:
                seconds *= 2
    figures = {
        "entries": float(entries),
        "rss_before_mib": before / MIB,
        "rss_mib": process.resident() / MIB,
        "peak_mib": process.resident("VmHWM") / MIB,
        "mirror_entries": process.metric("gateway_mirror_entries"),
        "mirror_mib": process.metric("gateway_mirror_bytes") / MIB,
        "evictions": process.metric("gateway_mirror_evictions_total"),
        "trips_at_the_end": last["trips"],
    }
    found = (
        f"RSS {figures['rss_mib']:.0f} MiB, peak {figures['peak_mib']:.0f} MiB, before {figures['rss_before_mib']:.0f}"
        f" MiB; the mirror counts {figures['mirror_mib']:.0f} of {MIRROR} for {figures['mirror_entries']:.0f} keys"
    )
    if not full:
        found += f"; not all of it: {last['trips']:.3f} trips a request at the end"
    return Finding(
        f"{entries:,} mirrored answers of 1 KB",
        found,
        full and figures["rss_mib"] < MOST_MIB,
        f"RSS < {MOST_MIB:.0f} MiB",
        figures,
    )


def idle(here: Lab, connections: int = CONNECTIONS) -> Finding:
    """Memory of one client connection that has had an answer and now waits, beside aiohttp's."""
    here.clear()
    connections = min(connections, resource.getrlimit(resource.RLIMIT_NOFILE)[1] - OTHER_FILES)
    figures = {"connections": float(connections)}
    for name, process, path in (
        ("gateway", here.gateway(ON), "/cached/1k"),
        ("constant", here.target("constant"), "/1k"),
    ):
        figures[name] = _bytes_each(process, path, connections)
    found = f"{figures['gateway'] / 1024:.1f} KiB each; the constant server {figures['constant'] / 1024:.1f} KiB"
    return Finding(f"{connections:,} idle connections", found, figures=figures)


def _bytes_each(process: Process, path: str, connections: int) -> float:
    Load(path).run(process.port, 1)
    before = process.resident()
    command = [sys.executable, "-m", "bench.idle", str(process.port), path, str(connections)]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        preexec_fn=lambda: prepare(LOAD_CORES),
    ) as clients:
        assert clients.stdout is not None
        assert clients.stdin is not None
        try:
            if clients.stdout.readline() != b"ready\n":
                raise SystemExit(f"{process.name}: {connections} idle connections could not be opened")
            return (process.resident() - before) / connections
        finally:
            clients.stdin.close()
