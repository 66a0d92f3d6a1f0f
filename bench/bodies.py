"""How long a request that only needs a limit's decision takes while others read bodies of 1 MB."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Final

from bench.lab import Lab
from bench.load import Load
from bench.report import Finding
from bench.rows import OFF, ON

SECONDS: Final = 5
DECISION: Final = Load("/limited/1k", connections=4)
BODY: Final = Load("/cached/1m", connections=1)


def bodies(here: Lab) -> Finding:
    """p50 and p99 of a request with a limit (and its answer of 1 KB from the upstream): alone, beside bodies that come
    from memory, which cost only the core that all share, and beside bodies that come from Redis.
    """
    figures: dict[str, float] = {}
    found = []
    for name, gateway, beside in (("alone", OFF, False), ("from memory", ON, True), ("from Redis", OFF, True)):
        here.clear()
        process = here.gateway(gateway)
        DECISION.run(process.port, 1)
        while BODY.one(process) != "HIT":
            process.must_run()
        with here.alone(), ThreadPoolExecutor(1) as pool:
            reading = pool.submit(BODY.run, process.port, SECONDS + 1) if beside else None
            counted = DECISION.run(process.port, SECONDS)
            read = reading.result() if reading is not None else None
        key = name.replace(" ", "_")
        figures |= {f"p50_{key}": counted["p50"], f"p99_{key}": counted["p99"]}
        text = f"{name} p50 {counted['p50']:.2f}, p99 {counted['p99']:.2f} ms"
        if read is not None:
            rate = figures[f"bodies_{key}"] = read["requests"] / read["seconds"]
            text += f" beside {rate:.0f} bodies/s"
        found.append(text)
    return Finding("limits beside 1 MB bodies", "; ".join(found), figures=figures)
