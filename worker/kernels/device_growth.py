"""Rigid region growing of many candidates at once on any torch device, by label propagation.

In rigid growth a region lives on one translation of the query over the grid, so every translation
is a small picture of its own: the query's bounding box, with a match where the cell that a query
patch is moved to is like it. Regions are the 4-connected components of these pictures.

Only translations that can hold the best region are labelled: first those with most matches, whose
largest component is a lower bound, then the others with as many matches as that. Equal to
``worker.core.region_growing.grow_seedless``, which decides the rare ties that float64 sums cannot.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from worker.core.region_growing import check_cells, grow_rigid_seedless
from worker.core.types import FloatArray, GridSize, IntArray, Region
from worker.errors import DescriptorInvalid
from worker.kernels.region_growing import tau_per_candidate, unsure

_FIRST = 8
"""Translations of each candidate that are labelled first."""
_MATCHES_AT_ONCE = 1 << 28
"""Cells of translated pictures that are held at a time, a byte each."""


@dataclass(frozen=True, slots=True, eq=False)
class _Pictures:
    """Translations of one query over one grid. ``query_b``: int64 (b,), the query patch at each
    place of its bounding box, row by row; ``cell_tb``: int64 (t, b), the cell it is moved to;
    ``there_tb``: bool (t, b), whether both exist. ``h``, ``w``: of the bounding box."""

    query_b: Tensor
    cell_tb: Tensor
    there_tb: Tensor
    h: int
    w: int


@dataclass(frozen=True, slots=True, eq=False)
class _Labelled:
    """Pictures of some candidates and translations: int64 (r,) both, and the label of each place,
    int64 (r, b): the lowest place it is connected with, b where there is no match."""

    candidate_r: Tensor
    translation_r: Tensor
    label_rb: Tensor


def grow_rigid_on_device(
    similarity_mqc: Tensor, query_cells: IntArray, grid: GridSize, tau: float | FloatArray
) -> list[Region | None]:
    """G* of every candidate over all seeds, rigid, by the tie rule of the core.

    ``similarity_mqc``: float32 (m, q, c) on the device, of any strides. Otherwise as
    :func:`worker.kernels.region_growing.grow_seedless_chunk`, and raising as it does.
    """
    m, q, c = similarity_mqc.shape
    check_cells((m, q, c), query_cells, grid)
    tau_m = tau_per_candidate(tau, m)
    if m * q * c == 0:
        return [None] * m
    if bool(similarity_mqc.isnan().any()):
        raise DescriptorInvalid("a similarity is NaN: verify the index")
    pictures = _translations(query_cells, grid, similarity_mqc.device)
    step = max(1, _MATCHES_AT_ONCE // pictures.cell_tb.numel())
    regions: list[Region | None] = []
    for first in range(0, m, step):
        part = slice(first, min(first + step, m))
        regions += _grow(similarity_mqc[part], query_cells, grid, tau_m[part], pictures)
    return regions


def _grow(
    similarity_mqc: Tensor,
    query_cells: IntArray,
    grid: GridSize,
    tau_m: FloatArray,
    pictures: _Pictures,
) -> list[Region | None]:
    m = len(tau_m)
    level_m = torch.from_numpy(tau_m).to(similarity_mqc.device)
    matches_mqc = similarity_mqc >= level_m[:, None, None]
    match_mtb = matches_mqc[:, pictures.query_b, pictures.cell_tb] & pictures.there_tb
    count_mt = match_mtb.sum(dim=-1)
    first_mt = torch.zeros_like(count_mt, dtype=torch.bool)
    most = count_mt.topk(min(_FIRST, count_mt.shape[1]), dim=1).indices
    first_mt.scatter_(1, most, True)
    first_mt &= count_mt > 0
    early = _label(match_mtb, first_mt, pictures)
    bound_m = _largest(early, m)
    late = _label(match_mtb, (count_mt >= bound_m.clamp_min(1)[:, None]) & ~first_mt, pictures)
    labelled = _Labelled(
        torch.cat([early.candidate_r, late.candidate_r]),
        torch.cat([early.translation_r, late.translation_r]),
        torch.cat([early.label_rb, late.label_rb]),
    )
    return _best(similarity_mqc, query_cells, grid, tau_m, pictures, labelled)


def _translations(query_cells: IntArray, grid: GridSize, device: torch.device) -> _Pictures:
    corner = query_cells.min(axis=0)
    h, w = (int(side) for side in query_cells.max(axis=0) - corner + 1)
    query_b = np.full(h * w, -1, dtype=np.int64)
    at = query_cells - corner
    query_b[at[:, 0] * w + at[:, 1]] = np.arange(len(query_cells))
    place_row, place_col = np.divmod(np.arange(h * w), w)
    shift_row, shift_col = (
        axis.ravel()
        for axis in np.meshgrid(np.arange(1 - h, grid.h), np.arange(1 - w, grid.w), indexing="ij")
    )
    row_tb, col_tb = shift_row[:, None] + place_row, shift_col[:, None] + place_col
    inside = (row_tb >= 0) & (row_tb < grid.h) & (col_tb >= 0) & (col_tb < grid.w)
    there_tb = inside & (query_b >= 0)
    cell_tb = np.where(inside, row_tb * grid.w + col_tb, 0)
    return _Pictures(
        torch.from_numpy(np.maximum(query_b, 0)).to(device),
        torch.from_numpy(cell_tb.astype(np.int64)).to(device),
        torch.from_numpy(there_tb).to(device),
        h,
        w,
    )


def _label(match_mtb: Tensor, chosen_mt: Tensor, pictures: _Pictures) -> _Labelled:
    """Connected components of the chosen pictures: each round takes the lowest label of the four
    neighbours, then the label of that label."""
    candidate_r, translation_r = chosen_mt.nonzero(as_tuple=True)
    match_rb = match_mtb[candidate_r, translation_r]
    r, b = match_rb.shape
    none = torch.full((r, 1), b, dtype=torch.int64, device=match_rb.device)
    place_b = torch.arange(b, device=match_rb.device)
    label_rb = torch.where(match_rb, place_b, b)
    while r:
        before = label_rb.view(r, pictures.h, pictures.w)
        after = before.clone()
        after[:, 1:] = torch.minimum(after[:, 1:], before[:, :-1])
        after[:, :-1] = torch.minimum(after[:, :-1], before[:, 1:])
        after[:, :, 1:] = torch.minimum(after[:, :, 1:], before[:, :, :-1])
        after[:, :, :-1] = torch.minimum(after[:, :, :-1], before[:, :, 1:])
        lower_rb = torch.where(match_rb, after.view(r, b), b)
        lower_rb = torch.cat([lower_rb, none], dim=1).gather(1, lower_rb)
        if torch.equal(lower_rb, label_rb):
            break
        label_rb = lower_rb
    return _Labelled(candidate_r, translation_r, label_rb)


def _sizes(labelled: _Labelled) -> Tensor:
    """Matches of the component whose lowest place is each place: int64 (r, b)."""
    r, b = labelled.label_rb.shape
    sizes = torch.zeros((r, b + 1), dtype=torch.int64, device=labelled.label_rb.device)
    sizes.scatter_add_(1, labelled.label_rb, torch.ones_like(labelled.label_rb))
    return sizes[:, :b]


def _largest(labelled: _Labelled, m: int) -> Tensor:
    """Size of each candidate's largest component: int64 (m,), 0 without one."""
    largest_m = torch.zeros(m, dtype=torch.int64, device=labelled.label_rb.device)
    if labelled.label_rb.numel():
        largest_r = _sizes(labelled).amax(dim=1)
        largest_m.scatter_reduce_(0, labelled.candidate_r, largest_r, "amax")
    return largest_m


def _best(
    similarity_mqc: Tensor,
    query_cells: IntArray,
    grid: GridSize,
    tau_m: FloatArray,
    pictures: _Pictures,
    labelled: _Labelled,
) -> list[Region | None]:
    """The best component of each candidate by the tie rule, as regions."""
    m, b = len(tau_m), labelled.label_rb.shape[1]
    device = similarity_mqc.device
    size_m = _largest(labelled, m)
    # Components that are as large as their candidate's largest: picture and lowest place.
    largest = (_sizes(labelled) == size_m[labelled.candidate_r, None]) & (
        size_m[labelled.candidate_r, None] > 0
    )
    picture_e, seed_e = largest.nonzero(as_tuple=True)
    candidate_e = labelled.candidate_r[picture_e]
    translation_e = labelled.translation_r[picture_e]
    member_eb = labelled.label_rb[picture_e] == seed_e[:, None]
    value_eb = similarity_mqc[
        candidate_e[:, None], pictures.query_b, pictures.cell_tb[translation_e]
    ]
    sum_e = torch.where(member_eb, value_eb, 0).sum(dim=1, dtype=torch.float64)
    best_m = torch.full((m,), -torch.inf, dtype=torch.float64, device=device)
    best_m.scatter_reduce_(0, candidate_e, sum_e, "amax")
    seed_cell_e = pictures.cell_tb[translation_e, seed_e]
    order_e = seed_e * grid.cells + seed_cell_e
    tied_e = sum_e == best_m[candidate_e]
    last = torch.iinfo(torch.int64).max
    first_m = torch.full((m,), last, dtype=torch.int64, device=device)
    first_m.scatter_reduce_(0, candidate_e[tied_e], order_e[tied_e], "amin")
    won_e = tied_e & (order_e == first_m[candidate_e])
    next_m = torch.full((m,), -torch.inf, dtype=torch.float64, device=device)
    next_m.scatter_reduce_(0, candidate_e[~won_e], sum_e[~won_e], "amax")
    lead_m = best_m - next_m

    won = won_e.nonzero()[:, 0]
    found = _regions(candidate_e[won], translation_e[won], member_eb[won], value_eb[won], pictures)
    regions = [found.get(n) for n in range(m)]
    largest_value = float(similarity_mqc.max())
    for n in unsure(largest_value, tau_m, size_m.cpu().numpy(), lead_m.cpu().numpy()):
        one_qc = similarity_mqc[n].cpu().contiguous().numpy()
        regions[n] = grow_rigid_seedless(one_qc, query_cells, grid, float(tau_m[n]))
    assert b == pictures.h * pictures.w
    return regions


def _regions(
    candidate_w: Tensor,
    translation_w: Tensor,
    member_wb: Tensor,
    value_wb: Tensor,
    pictures: _Pictures,
) -> dict[int, Region]:
    """Brought to the host, pairs by (query, cell)."""
    query_b = pictures.query_b.cpu().numpy()
    cell_wb = pictures.cell_tb[translation_w].cpu().numpy()
    member, value = member_wb.cpu().numpy(), value_wb.cpu().numpy()
    regions = {}
    for at, n in enumerate(candidate_w.tolist()):
        inside = np.flatnonzero(member[at])
        inside = inside[np.argsort(query_b[inside], kind="stable")]
        regions[n] = Region(query_b[inside], cell_wb[at, inside], value[at, inside])
    return regions
