"""Headers of an answer: cheap while untouched, exact when changed, never split."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.response import Response, header_line, problem, split_head

names = st.sampled_from(["X-A", "x-a", "X-B", "Vary", "ETag"])
values = st.text(st.characters(min_codepoint=32, max_codepoint=0x24F, blacklist_characters="\x7f"), max_size=20).map(
    str.strip
)


steps_to_take = st.lists(st.tuples(st.sampled_from(["set", "remove", "get"]), names, values))


@given(st.lists(st.tuples(names, values)), steps_to_take)
def test_a_prebuilt_answer_behaves_as_one_with_a_dictionary(
    fields: list[tuple[str, str]], steps: list[tuple[str, str, str]]
) -> None:
    head = b"".join(header_line(name, value) for name, value in fields)
    prebuilt = Response.prebuilt(200, head, {name.lower().encode() for name, _ in fields}, b"")
    plain = Response()
    plain.headers.extend(fields)
    for step, name, value in steps:
        if step == "set":
            prebuilt.set(name, value)
            plain.set(name, value)
        elif step == "remove":
            prebuilt.remove(name)
            plain.remove(name)
        assert prebuilt.get(name) == plain.get(name)
        assert prebuilt.has(name.lower().encode()) == (name in plain.headers)
    assert sorted((n.lower(), v) for n, v in split_head(prebuilt.head())) == sorted(
        (n.lower(), v) for n, v in plain.headers.items()
    )


@given(st.text(), st.text())
def test_no_header_can_end_the_head(name: str, value: str) -> None:
    try:
        line = header_line(name, value)
    except (ValueError, UnicodeEncodeError):
        return
    assert line.count(b"\r\n") == 1
    assert line.endswith(b"\r\n")
    assert b"\n" not in line[:-2]
    assert b"\r" not in line[:-2]


@pytest.mark.parametrize("value", ["a\r\nb", "a\nb", "a\rb", "a\x00b", "a\x7fb"])
def test_control_characters_are_refused(value: str) -> None:
    with pytest.raises(ValueError, match="control character"):
        header_line("X-A", value)
    response = Response.prebuilt(200, b"", (), b"")
    with pytest.raises(ValueError, match="control character"):
        response.set("X-A", value)


def test_undecodable_bytes_go_through_as_they_came() -> None:
    raw = b"X-A: caf\xe9\r\n"
    ((name, value),) = split_head(raw)
    assert header_line(name, value) == raw


def test_a_problem_document() -> None:
    response = problem(429, "Quota exceeded", "Wait.", kind="https://example/quota", extra=[1])
    assert response.headers["Content-Type"] == "application/problem+json"
    assert orjson.loads(response.body) == {  # type: ignore[arg-type]
        "type": "https://example/quota",
        "title": "Quota exceeded",
        "status": 429,
        "detail": "Wait.",
        "extra": [1],
    }
