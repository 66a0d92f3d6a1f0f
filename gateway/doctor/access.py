"""Checks of how it is reached, and by whom."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import redis

from gateway.doctor.findings import Finding, Level
from gateway.doctor.rights import Lacking

LOCAL_HOSTS: Final = ("localhost", "::1")
SHOWN: Final = 5
"""So many commands are named; the hint has them all."""
UNVERIFIED: Final = ("none", "cert_none", "verifymode.cert_none")


@dataclass(frozen=True, slots=True)
class Way:
    """How a server is reached.

    Args:
        local: by a Unix socket or on this machine.
        tls: encrypted.
        verified: its certificate is checked.
        password: one was given.
    """

    local: bool
    tls: bool
    verified: bool
    password: bool


def way_of(client: redis.Redis) -> Way:
    """How a client reaches its server."""
    pool = client.connection_pool
    where: dict[str, Any] = pool.connection_kwargs
    host = str(where.get("host", "localhost"))
    return Way(
        local="path" in where or host in LOCAL_HOSTS or host.startswith("127."),
        tls=issubclass(pool.connection_class, redis.SSLConnection),
        verified=str(where.get("ssl_cert_reqs", "required")).lower() not in UNVERIFIED,
        password=bool(where.get("password")),
    )


def tls(way: Way) -> Finding:
    """Sessions and cached answers on the wire."""
    if way.tls and not way.verified:
        hint = "take ssl_cert_reqs=none out of the URL and give ssl_ca_certs=FILE: anybody in between can answer for it"
        return Finding("TLS", Level.WARNING, "in use, but its certificate is not checked", hint)
    if way.tls:
        return Finding("TLS", Level.OK, "in use")
    if way.local:
        return Finding("TLS", Level.OK, "not in use, nor needed on one machine")
    hint = "rediss:// instead of redis://: passwords, sessions and answers cross the network as they are"
    return Finding("TLS", Level.WARNING, "not in use", hint)


def password(way: Way) -> Finding:
    """Who reaches it may read all sessions, and revoke revocations."""
    if way.password:
        return Finding("password", Level.OK, "in use")
    if way.local:
        return Finding("password", Level.OK, "none; it is reached on this machine only by this URL")
    hint = (
        "make a user with what it needs, see `gateway doctor --acl`, and put it in the URL: redis://USER:PASSWORD@HOST"
    )
    return Finding("password", Level.WARNING, "none: whoever reaches it may read and write everything", hint)


def user_rights(lacking: Lacking, user: str) -> Finding:
    """Whether the user may do what the gateway does."""
    if not lacking.commands and not lacking.keys:
        return Finding("rights", Level.OK, f"{user} may do all that the gateway does")
    rules = [*(f"~{pattern}" for pattern in lacking.keys), *(f"+{name}" for name in lacking.commands)]
    parts = []
    if lacking.commands:
        names = [name.upper().replace("|", " ") for name in lacking.commands]
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        parts.append(f"run {', '.join(names[:SHOWN])}{more}")
    if lacking.keys:
        parts.append(f"use {', '.join(lacking.keys)}")
    return Finding(
        "rights", Level.CRITICAL, f"{user} may not {', nor '.join(parts)}", f"ACL SETUSER {user} {' '.join(rules)}"
    )
