"""Matching again without the search: its arithmetic on any machine, and what it refuses to know."""

from __future__ import annotations

import math

import numpy as np
import pytest

from worker.core.ranking import beside_in_time, smoothed
from worker.core.rematch import HitTerms, SearchTerms, exact_cosines, rematch, same_pairs
from worker.core.similarity import l2_normalise
from worker.core.types import GridSize, Region

GRID = GridSize(4, 4)
CELLS = np.array([[1, 1], [1, 2]], dtype=np.int64)


def unit(rows: int, seed: int, d: int = 24) -> np.ndarray:
    random = np.random.default_rng(seed)
    return l2_normalise(random.normal(size=(rows, d)).astype(np.float32))


def terms(scoring: str, patches_qd: np.ndarray, **given: object) -> SearchTerms:
    fields = {
        "scoring": scoring,
        "growth": "rigid",
        "grid": GRID,
        "cells": CELLS,
        "patches_qd": patches_qd,
        "global_d": unit(1, 5)[0],
        "weight_q": np.ones(2, dtype=np.float32),
        "level_q": np.full(2, 0.5, dtype=np.float32) if scoring.startswith("fused") else None,
        "tau": 0.9,
        "alpha": 1.0,
        "coverage": "distinct",
        "k": 5,
        "k_s": 5,
        "global_weight": 0.0,
    }
    return SearchTerms(**{**fields, **given})


NEW = np.ones(16, dtype=np.float32)


def frame_with(query_qd: np.ndarray) -> np.ndarray:
    """A frame that shows the query's two cells at (2, 0) and (2, 1), and chance elsewhere."""
    patches_cd = unit(16, 7)
    patches_cd[[8, 9]] = query_qd
    return patches_cd


def test_products_are_those_of_plain_sums_in_order():
    query_qd, patches_cd = unit(3, 1), unit(16, 2)
    by_hand = [
        [
            np.float32(sum(float(a) * float(b) for a, b in zip(q, p, strict=True)))
            for p in patches_cd
        ]
        for q in query_qd
    ]
    assert np.array_equal(exact_cosines(query_qd, patches_cd), np.array(by_hand))
    near = np.abs(exact_cosines(query_qd, patches_cd) - query_qd @ patches_cd.T)
    assert near.max() < 1e-6


@pytest.mark.parametrize("scoring", ["fused", "fused-growth", "growth", "paper-growth", "votes"])
def test_the_region_is_where_the_query_is(scoring: str):
    query_qd = unit(2, 3)
    found = rematch(HitTerms(terms(scoring, query_qd), NEW), frame_with(query_qd), unit(1, 5)[0])
    assert same_pairs(found.region, [(1, 9), (0, 8)])
    assert not same_pairs(found.region, [(0, 8)])
    assert found.similarity == pytest.approx(1, abs=1e-6)
    assert found.coverage == 1
    assert (found.score is None) == (scoring == "votes")
    if found.score is not None:
        eq6 = scoring.endswith("-growth") and scoring != "fused-growth"
        expected = (2 + 2 * float(query_qd[0] @ query_qd[1])) / 4
        wanted = expected if eq6 or scoring == "growth" else 1.0
        assert found.score == pytest.approx(wanted, abs=1e-6)


def test_a_fused_score_takes_neighbours_trail_and_the_whole_frame():
    query_qd = unit(2, 3)
    search = terms("fused", query_qd, global_weight=0.1)
    hit = HitTerms(search, NEW, before=0.5, after=math.nan, trail=0.25)
    found = rematch(hit, frame_with(query_qd), search.global_d)
    assert found.score == pytest.approx((0.5 + 2 * 1 + 1) / 4 + 0.25 + 0.1, abs=1e-6)


def test_background_counts_little():
    query_qd = unit(2, 3)
    familiar = np.full(16, 0.0, dtype=np.float32)
    search = terms("fused", query_qd)
    new, known = (
        rematch(HitTerms(search, novelty_c), frame_with(query_qd), search.global_d).score
        for novelty_c in (NEW, familiar)
    )
    assert new is not None
    assert known is not None
    assert known < 0.5 * new


def test_nothing_matches_a_frame_outside_the_zone():
    query_qd = unit(2, 3)
    zone_c = np.zeros(16, dtype=np.bool_)
    zone_c[:4] = True
    search = terms("growth", query_qd, zone_c=zone_c)
    found = rematch(HitTerms(search, NEW), frame_with(query_qd), search.global_d)
    assert found.region is None
    assert (found.score, found.similarity, found.coverage) == (0.0, 0.0, 0.0)
    assert same_pairs(None, [])
    one = np.zeros(1, dtype=np.int64)
    assert not same_pairs(Region(one, one, np.zeros(1, dtype=np.float32)), [])


def test_smoothing_from_known_neighbours_is_smoothing():
    random = np.random.default_rng(4)
    score_n = random.random(40).astype(np.float32)
    t_n = np.cumsum(random.choice([1.0, 60.0], 40, p=[0.8, 0.2]))
    camera_n, place_n = np.zeros(40, dtype=np.int64), np.arange(40, dtype=np.int64)
    mixed = random.permutation(40)
    for order in (np.arange(40), mixed):
        made = beside_in_time(score_n[order], camera_n, t_n[order], place_n[order])
        again = smoothed(score_n[order], made.before_n, made.after_n)
        assert np.array_equal(made.smooth_n, again)
        at = int(np.flatnonzero(order == 7)[0])
        is_near = t_n[7] - t_n[6] <= 30
        assert math.isnan(made.before_n[at]) == (not is_near)
        if is_near:
            assert made.before_n[at] == score_n[6]
