"""Figures of a shadow comparison, and what refuses a switch."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.core.comparison import (
    DEFAULT_GATE,
    Canary,
    ComparedQuery,
    Comparison,
    Gate,
    ShadowOptions,
    agreement,
    comparison_from_json,
    figures,
    options_from_json,
    overlap,
    refusals,
)
from worker.errors import InputInvalid

answers = st.lists(st.integers(1, 30), unique=True, max_size=12)


def compared(live_found: int, new_found: int, of: int = 20) -> Comparison:
    canaries = tuple(
        Canary(at, "compared", 2, at < live_found, 2, at < new_found, 1) for at in range(of)
    )
    return Comparison("job", 1, (), canaries)


def asked(*overlaps: float | None) -> Comparison:
    queries = tuple(
        ComparedQuery(str(at), "compared", 3, 3, share) for at, share in enumerate(overlaps)
    )
    return Comparison("job", 1, queries, ())


@given(answers, answers)
def test_overlap_and_agreement_are_symmetric_shares(live: list[int], new: list[int]) -> None:
    if live and new:
        assert overlap(live, new) == overlap(new, live)
        assert overlap(live, live) == 1.0
    assert agreement(live, new) == agreement(new, live)
    for share in (overlap(live, new), agreement(live, new)):
        assert share is None or 0 <= share <= 1


def test_overlap_and_agreement_by_hand() -> None:
    assert overlap([1, 2, 3, 4], [4, 3, 9, 8]) == 0.5
    assert overlap([1, 2], [1, 2, 3, 4]) == 0.5
    assert overlap([1], []) == 0.0
    assert overlap([], [1]) is None
    assert agreement([1, 2, 3], [1, 2, 3]) == 1.0
    assert agreement([1, 2, 3], [3, 2, 1]) == 0.0
    assert agreement([1, 2, 3], [1, 3, 2]) == pytest.approx(2 / 3)
    assert agreement([1, 2], [2, 9]) is None


@pytest.mark.parametrize(("new_found", "refused"), [(20, False), (19, False), (18, True)])
def test_a_margin_is_what_may_lack(new_found: int, refused: bool) -> None:
    """1.00 to 0.95 is the margin itself, whatever the floating point says."""
    reasons = refusals(compared(20, new_found), DEFAULT_GATE)
    assert bool(reasons) == refused
    assert not refusals(compared(20, new_found), Gate(recall_margin=0.1))


def test_a_better_one_and_one_with_nothing_to_compare_are_not_refused() -> None:
    assert refusals(compared(3, 20), DEFAULT_GATE) == ()
    assert refusals(Comparison("job", 1, (), ()), Gate(0.0, 1.0)) == ()


def test_overlap_refuses_only_where_it_is_asked_to() -> None:
    low = asked(0.0, 0.2, None)
    assert refusals(low, DEFAULT_GATE) == ()
    assert refusals(low, Gate(min_overlap=0.1)) == ()
    (reason,) = refusals(low, Gate(min_overlap=0.11))
    assert "0.10" in reason and "--min-overlap 0.11" in reason


def test_failing_queries_are_named() -> None:
    failing = tuple(ComparedQuery(f"q{at}", "failing", detail="no hits") for at in range(5))
    (reason,) = refusals(Comparison("job", 1, failing, ()), DEFAULT_GATE)
    assert "5 queries" in reason and "q0 (no hits)" in reason and "2 more" in reason


def test_figures_count_what_both_were_asked() -> None:
    seen = compared(10, 20)
    unasked = Canary(99, "compared", 2, None, 0, False, 0)
    skipped = Canary(98, "skipped")
    found = figures(replace(seen, canaries=(*seen.canaries, unasked, skipped)))
    assert (found.live_self_recall, found.new_self_recall) == (0.5, 1.0)
    assert (found.live_neighbour_recall, found.new_neighbour_recall) == (1.0, 0.5)
    assert (found.canaries, found.canaries_skipped) == (21, 1)
    alone = figures(Comparison("job", 1, (), (unasked,)))
    assert (alone.live_self_recall, alone.new_self_recall) == (None, 0.0)
    assert (alone.live_neighbour_recall, alone.new_neighbour_recall) == (None, 0.0)
    assert figures(asked(0.5, 1.0, None)).overlap_mean == 0.75
    assert figures(asked(0.5, 1.0, None)).overlap_worst == 0.5


def test_json_gives_it_back() -> None:
    whole = replace(compared(2, 1, 3), queries=asked(0.5).queries, refused=("why",))
    assert comparison_from_json(json.loads(json.dumps(whole.to_json()))) == whole
    options = ShadowOptions(7, Gate(0.2, 0.5))
    assert options_from_json(json.loads(json.dumps(options.to_json()))) == options
    assert options_from_json(None) is None


def test_the_planned_are_counted_down() -> None:
    start = Comparison("job", 1, (ComparedQuery("a"), ComparedQuery("b")), (Canary(1),))
    assert start.planned == 3
    on = start.with_query(ComparedQuery("b", "skipped")).with_canary(Canary(1, "compared"))
    assert on.planned == 1
    assert [one.outcome for one in on.queries] == ["planned", "skipped"]


def test_options_have_bounds() -> None:
    for made in (lambda: Gate(-0.1), lambda: Gate(0.1, 1.1), lambda: ShadowOptions(0)):
        with pytest.raises(InputInvalid):
            made()
