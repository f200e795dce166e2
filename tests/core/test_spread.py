"""Members spread over groups: each once, evenly, and mostly where they were."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.core.spread import SPARE, spread
from worker.errors import InputInvalid


@given(st.dictionaries(st.integers(1, 10**6), st.integers(0, 5000)), st.integers(1, 9))
def test_each_member_is_in_one_group_and_none_is_overfull(weights, groups):
    members = spread(weights, groups)
    assert len(members) == groups
    assert sorted(one for group in members for one in group) == sorted(weights)
    even = sum(weights.values()) / groups
    for group in members:
        assert sum(weights[one] for one in group) <= (1 + SPARE) * even + max(
            weights.values(), default=0
        )


def test_many_equal_members_are_within_the_spare_of_even():
    members = spread(dict.fromkeys(range(1, 1001), 3600), 4)
    assert max(len(group) for group in members) <= (1 + SPARE) * 250
    assert min(len(group) for group in members) >= 200


def test_members_of_one_camera_are_spread_too():
    """Shards of camera 3 of 4, which have every fourth id."""
    members = spread(dict.fromkeys(range(3, 403, 4), 3600), 4)
    assert min(len(group) for group in members) >= 15


def test_a_grown_archive_leaves_most_members_where_they_were():
    before = spread(dict.fromkeys(range(1, 401), 3600), 4)
    after = spread(dict.fromkeys(range(1, 441), 3600) | {400: 3700}, 4)
    stayed = sum(len(set(old) & set(new)) for old, new in zip(before, after, strict=True))
    assert stayed >= 360


def test_no_groups_are_refused():
    with pytest.raises(InputInvalid, match="0 groups"):
        spread({1: 1}, 0)
