"""Retrieval measures of the evaluation. ``None`` stands for undefined, never a made-up 0 or 1."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from worker.core.types import BoolArray, Box
from worker.errors import InputInvalid


def average_precision(ranked_is_positive: BoolArray, positives: int) -> float | None:
    """Mean over all positives of the precision at their rank; one that was not retrieved adds 0.

    ``ranked_is_positive``: bool (n,), best hit first. ``positives``: positives that exist,
    retrieved or not. ``None`` without positives. Raises ``InputInvalid`` when more were retrieved
    than exist.
    """
    ranks = np.flatnonzero(ranked_is_positive) + 1
    if ranks.size > positives:
        raise InputInvalid(f"{ranks.size} positives retrieved of {positives}: count all of them")
    if positives == 0:
        return None
    return float((np.arange(1, ranks.size + 1) / ranks).sum() / positives)


def recall_at(ranked_is_positive: BoolArray, k: int) -> float:
    """R@k as in re-identification: 1.0 when any of the first k hits is positive, else 0.0.

    ``ranked_is_positive``: bool (n,), best first. Raises ``InputInvalid`` for k < 1.
    """
    if k < 1:
        raise InputInvalid(f"k must be at least 1, got {k}")
    return float(ranked_is_positive[:k].any())


def box_iou(a: Box, b: Box) -> float:
    """Area of the intersection over area of the union, 0..1; 0 when both boxes are empty."""
    overlap = Box(max(a.x0, b.x0), max(a.y0, b.y0), min(a.x1, b.x1), min(a.y1, b.y1)).area
    union = a.area + b.area - overlap
    return overlap / union if union > 0 else 0.0


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Nearest-rank percentile: the smallest value with at least ``percent`` % at or below it.

    Always a value that was measured. ``None`` without values. Raises ``InputInvalid`` for a
    percent outside 0..100 or a NaN among the values.
    """
    if not 0 <= percent <= 100:
        raise InputInvalid(f"percent must be from 0 to 100, got {percent!r}")
    if any(math.isnan(value) for value in values):
        raise InputInvalid("a percentile over NaN is undefined: leave failed measurements out")
    if not values:
        return None
    # The slack undoes rounding such as 16.1 * 1000 / 100 = 161.00000000000003.
    nearest_rank = max(1, math.ceil(percent * len(values) / 100 - 1e-9))
    return float(sorted(values)[nearest_rank - 1])
