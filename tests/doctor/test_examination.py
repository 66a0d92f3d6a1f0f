from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.doctor.examination import SLOTS, coverage, sentinels
from gateway.doctor.findings import Level
from gateway.doctor.nodes import Sentinels


def test_slots():
    assert coverage([(5461, 16383), (0, 5460)]).level is Level.OK
    finding = coverage([(1, 100), (102, 16383)])
    assert finding.level is Level.CRITICAL
    assert finding.found == "2 of 16,384 are served by nobody"
    assert finding.hint.endswith("slots 0, 101")


@given(st.lists(st.tuples(st.integers(0, SLOTS - 1), st.integers(0, 3000)), max_size=12))
def test_slots_are_covered_exactly_if_each_is_in_a_range(starts):
    ranges = [(first, min(SLOTS - 1, first + count)) for first, count in starts]
    served = {slot for first, last in ranges for slot in range(first, last + 1)}
    finding = coverage(ranges)
    assert (finding.level is Level.OK) == (len(served) == SLOTS)
    if len(served) < SLOTS:
        assert finding.found.startswith(f"{SLOTS - len(served):,} of")


def test_sentinels():
    assert sentinels(Sentinels(3, 2)).level is Level.OK
    assert sentinels(Sentinels(2, 2)).level is Level.WARNING
    assert sentinels(Sentinels(1, 2)).level is Level.CRITICAL
