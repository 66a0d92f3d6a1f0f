"""Who the client is, by the trusted-proxy rule.

Only a proxy that the configuration names is believed. Its `X-Forwarded-For` is read from the right: the first
address that is not itself a trusted proxy is the client. From anybody else the field says nothing.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Any, Final

MAX_HOPS: Final = 32


class TrustedProxies:
    """The networks of `server.trusted_proxies`."""

    def __init__(self, networks: Sequence[str]) -> None:
        self._networks = tuple(ipaddress.ip_network(network, strict=False) for network in networks)

    def __contains__(self, address: str) -> bool:
        if not self._networks:
            return False
        parsed = parse_ip(address)
        return parsed is not None and any(parsed in network for network in self._networks)

    def client_of(self, peer: str, headers: Any) -> str:
        """The client's address of a request that the trusted `peer` has passed on."""
        client = peer
        hops = [hop.strip() for line in headers.getall("X-Forwarded-For", ()) for hop in line.split(",")]
        for hop in reversed(hops[-MAX_HOPS:]):
            address = parse_ip(strip_port(hop))
            if address is None:
                break
            client = str(address)
            if client not in self:
                break
        return client


def parse_ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """An address, an IPv4-mapped one as IPv4; None if it is none."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def strip_port(text: str) -> str:
    """`1.2.3.4:80` and `[::1]:80` without the port."""
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0] if text.count(":") == 1 else text
