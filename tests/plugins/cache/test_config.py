"""Wrong keys of `[plugins.cache]`: what is said about them."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from gateway.config import problems_of
from plugins.cache.config import CacheConfig


def told(key: str, value: Any) -> str:
    """What is said about one key; all other keys have their defaults."""
    with pytest.raises(ValidationError) as caught:
        CacheConfig(**{key: value})
    (problem,) = problems_of(caught.value, CacheConfig, {key: value}, ("plugins", "cache"))
    assert problem.hint  # what the key is for
    return str(problem).partition("\n")[0]


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("ttl", "30 sek", '.ttl: expected a time such as 2.5, "250ms", "30s", "10m" or "24h", found \'30 sek\''),
        ("ttl", "48h", ".ttl: expected 86400 s or less, found '48h'"),
        ("ttl", True, ".ttl: expected a time such as"),
        ("ttl_by_status", {"99": "10s"}, ".ttl_by_status.99: expected 200 or more, found '99'"),
        ("ttl_by_status", {"404": "soon"}, ".ttl_by_status.404: expected a time such as"),
        ("ttl_by_content_type", {"image": "1h"}, '"application/json" or "image/*", found \'image\''),
        ("honor", "upstream", ".honor: expected 'origin' or 'override', found 'upstream'"),
        ("jitter", 0.6, ".jitter: expected 0.5 or less, found 0.6"),
        ("targeted", ["Cache Control"], ".targeted[0]: expected a name such as"),
        ("targeted", "CDN-Cache-Control", ".targeted: expected a list, found 'CDN-Cache-Control'"),
        ("ignore_query", ["utm*x"], ".ignore_query[0]: expected the name of a parameter, or the beginning"),
        ("key_headers", ["X-Forwarded-Host"], "written by the gateway"),
        ("methods", ["PUT"], ".methods[0]: expected 'POST' or 'QUERY', found 'PUT'"),
        ("max_body", "1 XiB", '.max_body: expected a size such as 65536, "64 KiB" or "10 MiB", found \'1 XiB\''),
        ("max_key_body", -1, ".max_key_body: expected 0 bytes or more, found -1"),
        ("tag_templates", ["a:{nope.id}"], "a placeholder is {path.NAME}, {query.NAME} or {header.NAME}"),
        ("purge_rules", ["PUT /x tag a"], "rule 'PUT /x tag a': expected METHODS PATH -> TARGETS"),
        ("purge_from", ["10.0.0.0/33"], '.purge_from[0]: expected an address or network such as "10.0.0.0/8"'),
        ("lock_ttl", "10ms", ".lock_ttl: expected 0.1 s or more"),
        ("shards", 100, ".shards: expected 64 or less, found 100"),
        ("colapse", True, ".colapse: unknown key"),
    ],
)
def test_a_wrong_value_is_told_with_its_key_and_what_was_expected(key: str, value: Any, expected: str) -> None:
    assert expected in told(key, value)
