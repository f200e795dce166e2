"""One hit matched again, from its descriptors and what the search knew beside them.

The arithmetic is the search's own, but for the products: cosines are summed in float64, term by
term in order, so that any machine gets the same bits. The search multiplies many frames at once in
float32; its own numbers differ in the last digits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from worker.core.background import joint_likeness, novel_similarity, weighted_max_similarity
from worker.core.coherence import PIVOT, coherent_similarity, pivoted
from worker.core.ranking import max_similarity_score, smoothed
from worker.core.region_growing import (
    CoverageKind,
    GrowthMode,
    coverage,
    grow_region,
    grow_seedless,
    region_score,
)
from worker.core.types import BoolArray, FloatArray, GridSize, IntArray, Region
from worker.core.zone import only_inside

Scoring = Literal[
    "fused", "fused-growth", "growth", "paper-growth", "max-sim", "whole-frame", "votes"
]
"""What a score is made of. ``votes`` count neighbours among all candidates: of them only the region
can be made again."""
SCORINGS: Final[tuple[Scoring, ...]] = get_args(Scoring)

SCORE_TOLERANCE = 1e-5
"""How far a score made again may be from the recorded one: float32 sums in another order."""


@dataclass(frozen=True, slots=True, eq=False)
class ExemplarTerms:
    """The subject, or what it is not (``against``), as another frame shows it: descriptors float32
    (q, d), weights float32 (q,)."""

    frame_id: int
    patches_qd: FloatArray
    weight_q: FloatArray
    share: float
    against: bool


@dataclass(frozen=True, slots=True, eq=False)
class SearchTerms:
    """What a search knew beside the frames it compared.

    ``patches_qd`` float32 (q, d) of the query's ``cells`` int64 (q, 2), ``weight_q`` float32 (q,);
    ``global_d`` float32 (D,). ``level_q``: match levels, float32 (q,), of the fused scorings only;
    ``tau`` is the match level of the others. ``zone_c``: bool (c,); None: everywhere.
    """

    scoring: Scoring
    growth: GrowthMode
    grid: GridSize
    cells: IntArray
    patches_qd: FloatArray
    global_d: FloatArray
    weight_q: FloatArray
    level_q: FloatArray | None
    tau: float
    alpha: float
    coverage: CoverageKind
    k: int
    k_s: int
    global_weight: float
    zone_c: BoolArray | None = None
    exemplars: tuple[ExemplarTerms, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class HitTerms:
    """What a search knew of one frame beside its descriptors.

    ``novelty_c``: float32 (c,), how far each cell was from its camera's background. ``before``,
    ``after``: likeness of its neighbours in time, NaN without one. ``trail``: what following the
    subject added to the score.
    """

    search: SearchTerms
    novelty_c: FloatArray
    before: float = math.nan
    after: float = math.nan
    trail: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Rematched:
    """The same hit anew; ``score`` is None where it depends on other frames (``votes``)."""

    region: Region | None
    similarity: float
    coverage: float
    score: float | None


def exact_cosines(query_qd: FloatArray, patches_cd: FloatArray) -> FloatArray:
    """Products of unit rows, float32 (q, c), summed in float64 in the order of the components."""
    query, patches = query_qd.astype(np.float64), patches_cd.astype(np.float64)
    sum_qc = np.zeros((len(query), len(patches)))
    for component in range(query.shape[1]):
        sum_qc += query[:, component, None] * patches[None, :, component]
    return sum_qc.astype(np.float32)


def rematch(terms: HitTerms, patches_cd: FloatArray, global_d: FloatArray) -> Rematched:
    """Match a frame, ``patches_cd`` float32 (c, d) and ``global_d`` float32 (D,), with the query
    again. Raises as region growing does."""
    search = terms.search
    fused = search.level_q is not None
    region, score = (
        _fused(terms, patches_cd, global_d) if fused else _plain(search, patches_cd, global_d)
    )
    if region is None:
        return Rematched(None, 0.0, 0.0, score)
    return Rematched(
        region,
        math.fsum(region.similarity.tolist()) / region.size,
        coverage(region, len(search.cells), "distinct"),
        score,
    )


def _plain(
    search: SearchTerms, patches_cd: FloatArray, global_d: FloatArray
) -> tuple[Region | None, float | None]:
    similarity_qc = only_inside(exact_cosines(search.patches_qd, patches_cd), search.zone_c)
    if search.scoring == "paper-growth":
        region = grow_region(
            similarity_qc,
            search.cells,
            search.grid,
            search.tau,
            search.growth,
            k=search.k,
            k_s=search.k_s,
        )
    else:
        region = grow_seedless(similarity_qc, search.cells, search.grid, search.tau, search.growth)
    if search.scoring == "votes":
        return region, None
    if search.scoring == "whole-frame":
        return region, float(exact_cosines(search.global_d[None], global_d[None])[0, 0])
    if search.scoring == "max-sim":
        return region, max_similarity_score(similarity_qc)
    if region is None:
        return None, 0.0
    return region, region_score(similarity_qc, region, search.alpha, search.coverage)


def _fused(
    terms: HitTerms, patches_cd: FloatArray, global_d: FloatArray
) -> tuple[Region | None, float]:
    search = terms.search
    assert search.level_q is not None
    exemplars = [search.patches_qd, *(one.patches_qd for one in search.exemplars)]
    cosine_ec = exact_cosines(np.concatenate(exemplars), patches_cd)
    novel_ec = only_inside(
        novel_similarity(cosine_ec[None], terms.novelty_c[None])[0], search.zone_c
    )
    own = slice(0, len(search.patches_qd))
    grown = grow_seedless(
        pivoted(novel_ec[None, own], search.level_q)[0],
        search.cells,
        search.grid,
        PIVOT,
        search.growth,
    )
    if search.scoring == "fused":
        seen_n = weighted_max_similarity(novel_ec[None, own], search.weight_q)
    else:
        seen_n = np.array(
            [coherent_similarity(novel_ec[own], grown, search.weight_q)], dtype=np.float32
        )
    likeness_n = _with_exemplars(search, seen_n, novel_ec)
    smooth_n = smoothed(likeness_n, _one(terms.before), _one(terms.after))
    global_n = exact_cosines(search.global_d[None], global_d[None])[0]
    score_n = smooth_n + _one(terms.trail) + search.global_weight * global_n
    return _with_cosines(grown, cosine_ec[own]), float(score_n.astype(np.float32)[0])


def _one(value: float) -> NDArray[np.float64]:
    return np.array([value], dtype=np.float64)


def _with_exemplars(search: SearchTerms, seen_n: FloatArray, novel_ec: FloatArray) -> FloatArray:
    first = len(search.patches_qd)
    found: dict[bool, list[FloatArray]] = {False: [], True: []}
    for one in search.exemplars:
        end = first + len(one.patches_qd)
        found[one.against].append(weighted_max_similarity(novel_ec[None, first:end], one.weight_q))
        first = end
    shares = [one.share for one in search.exemplars if not one.against]
    return joint_likeness(seen_n, found[False], shares, found[True])


def _with_cosines(region: Region | None, cosine_qc: FloatArray) -> Region | None:
    if region is None:
        return None
    similarity = cosine_qc[region.query_index, region.cell_index].astype(np.float32)
    return Region(region.query_index, region.cell_index, similarity)


def same_pairs(region: Region | None, pairs: Sequence[tuple[int, int]]) -> bool:
    """Whether a region is these pairs of query patch and cell, in any order."""
    if region is None:
        return not pairs
    own = zip(region.query_index.tolist(), region.cell_index.tolist(), strict=True)
    return sorted(own) == sorted(pairs)
