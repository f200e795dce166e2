"""Likeness from compact codes: what every frame of an archive is looked at by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from worker.core.background import TARGET_FLOOR, novelty_weight
from worker.core.compact import Codes
from worker.core.types import BoolArray, FloatArray
from worker.errors import InputInvalid


@dataclass(frozen=True, slots=True, eq=False)
class CoarseQuery:
    """What is looked for, in the projected space of a basis.

    ``query_qk``: float32 (q, k), the cells of every exemplar behind each other. ``lengths``: cells
    of each. ``weight_q``: (q,). ``shares``: what each of the first exemplars counts; the others
    speak against the subject, the strongest of them with ``against_weight``.
    """

    query_qk: FloatArray
    weight_q: FloatArray
    lengths: Sequence[int]
    shares: Sequence[float]
    against_weight: float

    def __post_init__(self) -> None:
        if sum(self.lengths) != len(self.query_qk) or len(self.query_qk) != len(self.weight_q):
            raise InputInvalid(f"{self.lengths} cells do not make {len(self.query_qk)}")

    def likeness(self, best_nq: FloatArray) -> FloatArray:
        """Appearance per frame, float32 (n,), from each query cell's best similarity (n, q)."""
        seen_en, first = [], 0
        for length in self.lengths:
            part, weight_q = slice(first, first + length), self.weight_q[first : first + length]
            seen_en.append(best_nq[:, part] @ weight_q / weight_q.sum())
            first += length
        count = len(self.shares)
        seen_n = np.average(seen_en[:count], axis=0, weights=self.shares)
        if len(seen_en) > count:
            seen_n -= self.against_weight * np.maximum.reduce(seen_en[count:])
        return np.asarray(seen_n, dtype=np.float32)


def target_weights(codes_nck: Codes, background_ck: FloatArray | None) -> FloatArray:
    """What the similarity of each cell counts, float32 (n, c): little where it is background.

    ``background_ck``: unit rows in the projected space; None: ones.
    """
    if background_ck is None:
        return np.ones(codes_nck.shape[:2], dtype=np.float32)
    decoded = codes_nck.astype(np.float32)
    norm_nc = np.maximum(np.linalg.norm(decoded, axis=-1), 1e-6)
    cosine_nc = (decoded * background_ck).sum(axis=-1) / norm_nc
    weights: FloatArray = np.sqrt(novelty_weight(1 - cosine_nc, TARGET_FLOOR))
    return weights


def best_similarity(
    codes_nck: Codes,
    step: float,
    query_qk: FloatArray,
    background_ck: FloatArray | None,
    inside_c: BoolArray | None = None,
) -> FloatArray:
    """``max_j t_j q_i . p_j`` per frame and query cell, float32 (n, q), from codes (n, c, k).

    ``t`` are the target weights; j runs over the cells of the zone ``inside_c``, bool (c,), or over
    all. The slow reference of :mod:`worker.kernels.coarse`.
    """
    n, c, k = codes_nck.shape
    decoded = codes_nck.astype(np.float32) * np.float32(step)
    similarity = (decoded.reshape(-1, k) @ query_qk.T).reshape(n, c, -1)
    weighted = similarity * target_weights(codes_nck, background_ck)[:, :, None]
    best: FloatArray = (weighted if inside_c is None else weighted[:, inside_c]).max(axis=1)
    return best
