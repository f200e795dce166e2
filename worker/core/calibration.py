"""What a score is worth: how many frames of the searched span would reach it by chance.

Calibrated from the search itself, without labels: most frames of a camera do not show the subject,
so the upper quarter of their scores says how far chance reaches there. Per camera a normal tail is
laid through two quantiles of the searched frames (an a-contrario number of false alarms; Desolneux,
Moisan and Morel 2000). Where the subject is in more than a few of a camera's frames it counts as
chance itself, and the figure errs towards "no convincing match".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worker.core.types import IntArray
from worker.errors import InputInvalid

MIN_FRAMES = 8
"""A camera with fewer compared frames takes its tail from all cameras together."""
LOW, HIGH = 0.75, 0.95
Z_LOW, Z_HIGH = 0.6744897501960817, 1.6448536269514722
"""Standard normal quantiles of ``LOW`` and ``HIGH``."""
MIN_SPREAD = 1e-4
"""Smallest spread of scores: identical frames leave no tail to measure."""


def expected_false_matches(
    score_n: NDArray[Any], chance_m: NDArray[Any], camera_m: IntArray
) -> NDArray[np.float64]:
    """Frames expected at or above each score by chance, over all cameras: float64 (n,).

    ``sum_c m_c P_c(S >= s)`` with ``P_c`` the normal tail through the ``LOW`` and ``HIGH``
    quantiles of the scores of camera c's m_c frames. ``chance_m``: scores of *all* frames searched,
    not of those chosen for being alike, less what is known to show the subject, its trail;
    ``camera_m``: int64 (m,), their cameras. NaN with fewer than ``MIN_FRAMES`` of them. Raises
    ``InputInvalid`` for arrays that do not fit.
    """
    if chance_m.shape != camera_m.shape or chance_m.ndim != 1:
        raise InputInvalid(
            f"chance scores {chance_m.shape} and cameras {camera_m.shape} must both be (m,)"
        )
    scores, chance = score_n.astype(np.float64), chance_m.astype(np.float64)
    if chance.size < MIN_FRAMES:
        return np.full(scores.shape, np.nan)
    expected = np.zeros(scores.shape)
    for camera in np.unique(camera_m):
        own = chance[camera_m == camera]
        expected += own.size * _tail(scores, own if own.size >= MIN_FRAMES else chance)
    return expected


def _tail(scores: NDArray[np.float64], sample: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of chance frames at or above each score."""
    low, high = np.quantile(sample, (LOW, HIGH))
    spread = max((high - low) / (Z_HIGH - Z_LOW), MIN_SPREAD)
    z = (scores - low) / spread + Z_LOW
    return np.array([0.5 * math.erfc(value / math.sqrt(2.0)) for value in z])


@dataclass(frozen=True, slots=True, eq=False)
class RareTail:
    """How rare scores are that hardly any of a sample of chance reaches.

    Behind its ``LOW`` quantile an exponential tail goes through the ``HIGH`` one: heavier than the
    normal one, which states one frame a day where forty come (benchmarks/LOG.md). A score that
    frames of the sample reach is never rarer than they are: ``sample_m`` float64 (m,), in order.
    """

    low: float
    scale: float
    sample_m: NDArray[np.float64]

    def share_above(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Share of chance frames at or above each score, float64 (n,)."""
        behind = np.minimum((self.low - scores) / self.scale, 0.0)
        reached = self.sample_m.size - np.searchsorted(self.sample_m, scores, side="left")
        return np.maximum((1.0 - LOW) * np.exp(behind), reached / self.sample_m.size)


def rare_tail(sample: NDArray[Any]) -> RareTail:
    """The tail of a sample of chance scores (m,). Raises ``InputInvalid`` for an empty one."""
    if sample.size == 0:
        raise InputInvalid("a tail of chance needs scores of chance")
    sample_m = np.sort(sample.astype(np.float64))
    low, high = np.quantile(sample_m, (LOW, HIGH))
    scale = float(high - low) / math.log((1.0 - LOW) / (1.0 - HIGH))
    return RareTail(float(low), max(scale, MIN_SPREAD), sample_m)
