import math

import numpy as np
import pytest
import pytrec_eval
from hypothesis import given
from hypothesis import strategies as st

from worker.core.metrics import average_precision, box_iou, percentile, recall_at
from worker.core.types import Box
from worker.errors import InputInvalid


def test_average_precision_by_hand():
    ranked = np.array([True, False, True, False])
    # Precision at ranks 1 and 3: 1 and 2/3. Of 2 positives: 5/6; of 4 (two missed): 5/12.
    assert average_precision(ranked, 2) == pytest.approx(5 / 6)
    assert average_precision(ranked, 4) == pytest.approx(5 / 12)
    assert average_precision(np.zeros(3, dtype=bool), 1) == 0
    assert average_precision(np.zeros(3, dtype=bool), 0) is None
    with pytest.raises(InputInvalid):
        average_precision(ranked, 1)


def test_recall_by_hand():
    ranked = np.array([False, False, True, False])
    assert [recall_at(ranked, k) for k in (1, 2, 3, 10)] == [0, 0, 1, 1]
    assert recall_at(np.empty(0, dtype=bool), 5) == 0
    with pytest.raises(InputInvalid):
        recall_at(ranked, 0)


def test_average_precision_and_recall_agree_with_trec_eval():
    rng = np.random.default_rng(11)
    judgements, retrieved, ours = {}, {}, []
    for query in range(40):
        relevant = rng.random(30) < rng.uniform(0.05, 0.6)
        relevant[rng.integers(30)] = True
        hits = rng.permutation(30)[: rng.integers(1, 31)]
        name = f"q{query}"
        judgements[name] = {f"f{at}": 1 for at in np.flatnonzero(relevant)}
        retrieved[name] = {f"f{at}": float(100 - rank) for rank, at in enumerate(hits)}
        ranked = relevant[hits]
        found = average_precision(ranked, int(relevant.sum()))
        ours.append((found, recall_at(ranked, 1), recall_at(ranked, 5)))
    names = ("map", "success_1", "success_5")
    oracle = pytrec_eval.RelevanceEvaluator(judgements, {"map", "success.1,5"}).evaluate(retrieved)
    np.testing.assert_allclose(
        np.array(ours, dtype=float),
        [[oracle[query][name] for name in names] for query in judgements],
        rtol=1e-6,
    )


def test_iou_by_hand():
    # Squares of side 0.5 shifted by 0.25 in x: overlap 1/8, union 3/8.
    square, shifted = Box(0, 0, 0.5, 0.5), Box(0.25, 0, 0.75, 0.5)
    assert box_iou(square, shifted) == pytest.approx(1 / 3)
    assert box_iou(square, square) == 1
    # Touching boxes share an edge, not an area.
    assert box_iou(square, Box(0.5, 0, 1, 0.5)) == 0
    assert box_iou(square, Box(0.6, 0.6, 1, 1)) == 0
    assert box_iou(Box(0.1, 0.1, 0.1, 0.1), Box(0.1, 0.1, 0.1, 0.1)) == 0


numbers = st.floats(0, 1)
boxes = st.builds(Box, numbers, numbers, numbers, numbers)


@given(boxes, boxes)
def test_iou_is_symmetric_and_between_0_and_1(a, b):
    assert box_iou(a, b) == box_iou(b, a)
    assert 0 <= box_iou(a, b) <= 1 + 1e-9


def test_percentile_by_hand():
    values = [50.0, 15.0, 35.0, 20.0, 40.0]
    # Nearest ranks of 5 values: 5 % -> ceil(0.25) = 1, 30 % -> 2, 50 % -> 3, 95 % -> 5.
    assert [percentile(values, percent) for percent in (0, 5, 30, 50, 95, 100)] == [
        15, 15, 20, 35, 50, 50,
    ]  # fmt: skip
    assert percentile(list(range(1, 101)), 7) == 7
    # 16.1 * 1000 / 100 is 161.00000000000003 in float arithmetic; the rank is 161.
    assert percentile(list(range(1, 1001)), 16.1) == 161
    assert percentile([], 50) is None
    for bad in (-1, 101, math.nan):
        with pytest.raises(InputInvalid):
            percentile(values, bad)
    with pytest.raises(InputInvalid):
        percentile([math.nan], 50)


@given(st.lists(st.floats(-100, 100), min_size=1), st.integers(0, 100))
def test_percentile_equals_numpy_inverted_cdf(values, percent):
    expected = np.percentile(values, percent, method="inverted_cdf")
    assert percentile(values, percent) == expected
