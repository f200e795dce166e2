import json
import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.core.examples import Example
from worker.core.search_params import (
    DEFAULT_STRATEGY,
    SearchParams,
    Strategy,
    search_params_from_json,
)
from worker.core.types import Box, Point, Polygon
from worker.errors import InputInvalid, RoiInvalid

BOUNDS = {
    "top_n": (1, 10_000),
    "k": (1, 256),
    "k_s": (1, 256),
    "tau": (-1.0, 1.0),
    "alpha": (0.0, 8.0),
    "epsilon": (1e-6, 1.0),
    "limit": (1, 1000),
    "appearance_gap_s": (0.0, 3600.0),
}
INTEGERS = {"top_n", "k", "k_s", "limit"}
NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize("field", BOUNDS)
def test_bounds_are_inclusive_and_named_in_the_refusal(field):
    low, high = BOUNDS[field]
    step = 1 if field in INTEGERS else 1e-9
    for value in (low, high):
        assert search_params_from_json({field: value}).to_json()[field] == value
    for value in (low - step, high + step):
        with pytest.raises(InputInvalid, match=f"^{field} must be") as refused:
            search_params_from_json({field: value})
        assert f"{low:g}" in str(refused.value) or str(low) in str(refused.value)
        assert repr(value) in str(refused.value)


@pytest.mark.parametrize("field", BOUNDS)
@pytest.mark.parametrize("value", [math.nan, math.inf, True, "5", [5], {}])
def test_values_that_are_no_such_number_are_refused(field, value):
    with pytest.raises(InputInvalid, match=f"^{field} must be"):
        search_params_from_json({field: value})


@pytest.mark.parametrize("field", sorted(INTEGERS))
@pytest.mark.parametrize("value", [2.5, 2.0, None])
def test_counts_take_integers_only(field, value):
    with pytest.raises(InputInvalid, match=f"^{field} must be an integer"):
        search_params_from_json({field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("strategy", "best"),
        ("strategy", None),
        ("strategy", 3),
        ("strategy", ["max-sim"]),
        ("query_descriptor", "patch"),
        ("query_descriptor", ["frame"]),
        ("coverage", "full"),
        ("group", "camera"),
        ("group", ["frame"]),
        ("group", None),
        ("camera_ids", []),
        ("camera_ids", 3),
        ("camera_ids", "3"),
        ("camera_ids", [0]),
        ("camera_ids", [1.5]),
        ("camera_ids", ["1"]),
        ("camera_ids", [1] * 10_001),
        ("t_from_utc", "yesterday"),
        ("t_from_utc", "2026-05-01T12:00:00"),
        ("t_to_utc", 1767225600),
    ],
)
def test_other_bad_values_are_refused(field, value):
    with pytest.raises(InputInvalid, match=field):
        search_params_from_json({field: value})


@pytest.mark.parametrize(
    "zone",
    [
        {"box": [0.5, 0, 0.5, 1]},
        {"box": [float("nan"), 0, 1, 1]},
        {"box": [2, 2, 3, 3]},
        {"polygon": [[0, 0], [1, 1]]},
        {"polygon": [[0, 0], [1, 1], [1, 0], [0, 1]]},
        {},
        {"circle": 1},
    ],
)
def test_a_zone_that_is_none_is_refused_as_a_zone(zone):
    with pytest.raises(RoiInvalid, match=r"^zone: "):
        search_params_from_json({"zone": zone})


@pytest.mark.parametrize("zone", [[0, 0, 1, 1], "0,0,1,1", 3])
def test_a_zone_is_an_object(zone):
    with pytest.raises(InputInvalid, match="zone"):
        search_params_from_json({"zone": zone})


def test_the_value_itself_refuses_naive_times_and_plain_strings():
    with pytest.raises(InputInvalid, match="t_from_utc"):
        SearchParams(t_from_utc=datetime(2026, 5, 1))  # noqa: DTZ001
    with pytest.raises(InputInvalid, match="strategy"):
        SearchParams(strategy="max-sim")  # type: ignore[arg-type]


def test_the_time_span_must_not_be_empty():
    with pytest.raises(InputInvalid, match="before"):
        SearchParams(t_from_utc=NOON, t_to_utc=NOON)
    with pytest.raises(InputInvalid, match="before"):
        # 12:00 at +2 h is 10:00 UTC.
        SearchParams(t_from_utc=NOON, t_to_utc=NOON.replace(tzinfo=timezone(timedelta(hours=2))))
    assert SearchParams(t_from_utc=NOON, t_to_utc=NOON + timedelta(microseconds=1))


def test_unknown_fields_are_refused():
    with pytest.raises(InputInvalid, match=r"\['topn'\].*top_n"):
        search_params_from_json({"topn": 5})


def test_an_empty_object_means_the_defaults():
    assert search_params_from_json({}) == SearchParams()


times = st.datetimes(
    min_value=datetime(2000, 1, 1),  # noqa: DTZ001
    max_value=datetime(2100, 1, 1),  # noqa: DTZ001
    timezones=st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=30))]),
)


@given(
    st.builds(
        SearchParams,
        strategy=st.sampled_from(Strategy),
        top_n=st.integers(1, 10_000),
        tau=st.none() | st.floats(-1, 1),
        alpha=st.floats(0, 8),
        query_descriptor=st.sampled_from(["frame", "roi-crop", "roi-mean"]),
        coverage=st.sampled_from(["distinct", "literal"]),
        group=st.sampled_from(["appearance", "frame"]),
        appearance_gap_s=st.floats(0, 3600),
        camera_ids=st.none() | st.lists(st.integers(1, 99), min_size=1, max_size=4).map(tuple),
        t_from_utc=st.none() | times,
        zone=st.sampled_from(
            [None, Box(0.1, 0.2, 0.3, 0.4), Polygon((Point(0, 0), Point(1, 0), Point(1, 1)))]
        ),
    )
)
def test_json_is_read_back_unchanged(params):
    assert search_params_from_json(json.loads(json.dumps(params.to_json()))) == params


def test_default_resolves_to_the_default_strategy():
    assert SearchParams().resolved() == SearchParams(strategy=DEFAULT_STRATEGY)
    growing = SearchParams(strategy=Strategy.GROW_RIGID, tau=0.7)
    assert growing.resolved() is growing


def test_paper_strategies_take_the_parameters_of_section_4_1():
    papers = [strategy for strategy in Strategy if strategy.is_paper]
    assert len(papers) == 6
    for strategy in papers:
        given_params = SearchParams(
            strategy=strategy, top_n=9, k=9, tau=0.9, alpha=3.0, limit=7, camera_ids=(2,)
        )
        assert given_params.resolved() == replace(
            given_params, top_n=50, k=5, tau=0.6, alpha=1.0, coverage="literal"
        )


def test_a_time_before_the_first_year_is_refused() -> None:
    with pytest.raises(InputInvalid, match="t_from_utc"):
        search_params_from_json({"t_from_utc": "0001-01-01T00:00:00+14:00"})


def test_examples_survive_json() -> None:
    triangle = Polygon((Point(0.1, 0.1), Point(0.5, 0.1), Point(0.1, 0.5)))
    made = SearchParams(
        more=(Example(7, Box(0.1, 0.2, 0.3, 0.4)), Example(8, triangle)),
        less=(Example(9, Box(0.0, 0.0, 1.0, 1.0)),),
    )
    assert made.to_json()["less"] == [{"frame_id": 9, "box": [0.0, 0.0, 1.0, 1.0]}]
    assert search_params_from_json(json.loads(json.dumps(made.to_json()))) == made
    assert search_params_from_json({"more": [], "less": []}) == SearchParams()


@pytest.mark.parametrize(
    ("examples", "says"),
    [
        ([{"box": [0, 0, 1, 1]}], "an example is an object with frame_id"),
        (["7:0,0,1,1"], "an example is an object with frame_id"),
        ([{"frame_id": 0, "box": [0, 0, 1, 1]}], "frame_id"),
        ([{"frame_id": "7", "box": [0, 0, 1, 1]}], "frame_id"),
        ([{"frame_id": 7}], "a box or a polygon"),
        ([{"frame_id": 7, "box": [0.5, 0, 0.5, 1]}], "no extent"),
        ([{"frame_id": 7, "box": [0, 0, 1, 1]}] * 17, "at most 16 examples"),
        ({"frame_id": 7, "box": [0, 0, 1, 1]}, "at most 16 examples"),
    ],
)
@pytest.mark.parametrize("field", ["more", "less"])
def test_bad_examples_are_refused(field: str, examples: Any, says: str) -> None:
    with pytest.raises((InputInvalid, RoiInvalid), match=says):
        search_params_from_json({field: examples})
