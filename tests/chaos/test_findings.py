"""What is counted is what a client would have noticed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.chaos.findings import Findings, Marks, find, overshoot
from tests.chaos.load import LIMIT, Sample
from tests.chaos.report import COLUMNS, cells, markdown, replace_table


def sample(kind: Any, who: str, sent: float, status: int = 200, **more: Any) -> Sample:
    return Sample(kind, who, 0, sent, status=status, **{"took": 0.001, "owner": who, **more})


def found(*samples: Sample, **more: Any) -> Findings:
    told = {"revoked": {}, "changed": {}, "marks": Marks(broken=10.0, repaired=12.0), "lost": (), **more}
    return find(samples, told["revoked"], told["changed"], told["marks"], told["lost"])


def test_an_error_counts_for_the_kind_of_route_it_happened_on() -> None:
    broken = found(
        sample("open", "k1", 11, 503), sample("page", "u1", 11, 503), sample("open", "k1", 11, 0, error="reset")
    )
    assert (broken.open_5xx, broken.strict_5xx) == (2, 1)


def test_what_is_refused_to_those_who_did_nothing_is_not_what_is_refused_to_others() -> None:
    refused = [sample("page", "u1", 11, 401), sample("limited", "greedy", 11, 429), sample("token", "t1", 11, 401)]
    assert found(*refused, revoked={"t1": 10.5}).blamed == 1
    assert found(*refused).blamed == 2


def test_only_what_surely_lies_within_one_period_is_over_the_limit() -> None:
    steady = [sample("limited", "greedy", i * 0.05) for i in range(200)]
    assert overshoot(steady, limit=40, period=2.0) == 0
    assert overshoot([*steady, *[sample("limited", "greedy", 5.0)] * 7], limit=40, period=2.0) == 7
    slow = [sample("limited", "greedy", 0.0, took=3.0) for _ in range(100)]
    assert overshoot(slow, limit=40, period=2.0) == 0
    assert found(*[sample("limited", "greedy", 11.0) for _ in range(LIMIT + 3)]).overshoot == 3


def test_an_answer_may_not_be_anothers_nor_too_old() -> None:
    wrong = found(sample("page", "u1", 11, owner="u2"), sample("open", "k1", 11, age=9.9), sample("open", "k2", 11))
    assert (wrong.foreign, wrong.overaged) == (1, 1)


def test_how_long_the_old_version_was_seen() -> None:
    # Told of version 1 at 11.0 and of version 2 at 11.5; asked at 11.7, and got version 0.
    old = sample("page", "u1", 11.7, version=0, known=2)
    assert round(found(old, changed={"u1": [11.0, 11.5]}).old_version, 6) == 0.7


def test_a_token_is_let_in_too_late() -> None:
    late = sample("token", "t1", 13.0)
    assert found(late, revoked={"t1": 12.5}).revoked_accepted == 0.5
    assert found(late, revoked={"t1": 13.5}).revoked_accepted == 0.0


def test_a_revocation_that_redis_has_lost_counts_for_nothing() -> None:
    tried = [sample("token", "t1", 11.0, 401), sample("token", "t1", 13.0)]
    lost = found(*tried, revoked={"t1": 10.5}, lost={"t1"})
    assert (lost.revoked_accepted, lost.blamed, lost.revocations, lost.lost) == (0.0, 0, 0, 1)


def test_it_is_not_normal_before_the_last_error_and_before_the_nodes_say_so() -> None:
    marks = Marks(broken=10.0, repaired=12.0, health=[(11.0, 0, False), (12.4, 1, False), (12.5, 1, True)])
    assert round(found(sample("page", "u1", 11, 503), marks=marks).normal_after, 6) == 0.4
    assert found(sample("page", "u1", 12.999, 503), marks=marks).normal_after == 1.0
    marks.ended = 13.1
    assert not found(sample("page", "u1", 11, 503), marks=marks).still_wrong
    assert found(sample("page", "u1", 12.9, 503), marks=marks).still_wrong


def test_it_is_not_normal_while_plugins_decide_without_redis() -> None:
    marks = Marks(broken=10.0, repaired=12.0, decided=[(9.0, 0, 5.0), (9.0, 1, 0.0), (12.5, 0, 7.0), (13.0, 0, 7.0)])
    alone = found(marks=marks)
    assert (alone.without_redis, alone.normal_after) == (2, 0.5)


def test_a_line_of_the_table_has_all_columns() -> None:
    for line in (("a", Findings()), ("b", "not yet")):
        assert len(cells(line)) == len(COLUMNS)
    assert markdown([("b", "not yet")]).endswith("| b | skipped: not yet |" + "  |" * (len(COLUMNS) - 2))


def test_a_page_gets_the_table_between_its_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- make chaos -->\nold\n<!-- end -->\nbehind\n")
    for _ in range(2):
        replace_table(page, [("a", Findings())])
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("behind\n")
    assert "old\n" not in text
    assert text.count("| a |") == 1
    page.write_text("no marks")
    with pytest.raises(ValueError, match="expected <!-- make chaos -->"):
        replace_table(page, [])
