from __future__ import annotations

import io
from typing import Any

import redis
from rich.console import Console

from gateway.doctor.findings import Finding, Level
from gateway.doctor.nodes import Node
from gateway.doctor.report import document, table

A, B = (Node("primary", "a:1", redis.Redis()), Node("replica", "b:2", redis.Redis()))


def printed(findings: list[Finding], nodes: list[Any]) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=100).print(table(findings, nodes, "redis://a"))
    return [line.rstrip() for line in out.getvalue().splitlines()]


def test_the_worst_is_first_and_says_what_to_do():
    findings = [
        Finding("TLS", Level.OK, "in use", node="a:1"),
        Finding("clock", Level.WARNING, "2 s ahead", "run NTP", node="a:1"),
        Finding("rights", Level.CRITICAL, "none", "grant some", node="a:1"),
    ]
    assert printed(findings, [A]) == [
        "redis://a",
        "critical  rights  none",
        "                  → grant some",
        "warning   clock   2 s ahead",
        "                  → run NTP",
        "ok        TLS     in use",
        "1 critical, 1 warning, 1 ok",
    ]


def test_what_servers_have_in_common_is_told_once():
    findings = [
        finding
        for node in ("a:1", "b:2")
        for finding in (
            Finding("eviction", Level.WARNING, "noeviction", "change it", node=node),
            Finding("latency", Level.OK, f"p50 of {node}", node=node),
            Finding("maxmemory", Level.UNKNOWN, "may not look", "grant +info", node=node),
            Finding("replicas", Level.UNKNOWN, "may not look", "grant +info", node=node),
        )
    ]
    findings.append(Finding("clock", Level.WARNING, "2 s", "run NTP", node="b:2"))
    lines = printed(findings, [A, B])
    assert lines[0] == "redis://a: a:1 (primary), b:2 (replica)"
    assert lines[1].endswith("all servers: noeviction")
    assert lines[3].endswith("b:2: 2 s")
    assert lines[5].endswith("not looked at  all servers: maxmemory, replicas: may not look")
    assert lines[7].endswith("p50 of a:1 (1 more ok)")
    assert lines[8] == "2 warnings, 2 unknown, 1 ok"
    told = document(findings, [A, B], "redis://a")
    assert told["level"] == "warning"
    assert len(told["findings"]) == len(findings)
    assert {one["node"] for one in told["findings"]} == {"a:1", "b:2"}
