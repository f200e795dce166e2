"""Figures of one ranking against its labels, and their summary over queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from worker.core.appearances import join_appearances, repeated_share
from worker.core.calibration import expected_false_matches
from worker.core.geometry import cells_box
from worker.core.metrics import average_precision, box_iou, percentile, recall_at
from worker.core.types import Box, GridSize
from worker.labelled import Dataset, LabelledQuery
from worker.ranked_frame import RankedFrame

STAGE1_DEPTHS = (50, 200)
STATED_FALSE_MATCHES = (0.3, 1.0, 3.0, 10.0)
ANSWER_FRAMES = 50
"""Frames of an answer: of these appearances are joined."""
BOXES_AT = 20
"""Hits, from the first, whose boxes are compared."""
DUPLICATES_AT = 20
APPEARANCE_GAP_S = 5.0
SAME_SCALE = (0.8, 1.25)
OTHER_SCALE = (0.5, 2.0)
METRICS = ("map", "r1", "r5", "r10", "map_other", "r1_other", "r5_other")


@dataclass(frozen=True, slots=True)
class Scored:
    """One query's figures; None where undefined. ``false_matches``: stated level -> frames without
    the subject that reach it when every frame with the subject is taken out."""

    scene: str
    metrics: dict[str, float | None]
    stage1: dict[int, float | None]
    scale_r1: dict[str, float | None]
    false_matches: dict[float, float | None]
    duplicates: dict[str, float]
    ious: list[float]
    query_ms: float


def score_ranking(
    ranked: Sequence[RankedFrame],
    image_of: Mapping[int, str],
    query: LabelledQuery,
    dataset: Dataset,
    grid: GridSize,
    query_ms: float,
) -> Scored:
    """Every figure of one query. Ignored frames are taken out first."""
    kept = [hit for hit in ranked if image_of[hit.frame_id] not in query.ignore]
    images = [image_of[hit.frame_id] for hit in kept]
    # Positives of the query's own camera are taken out; its negatives stay and must be beaten.
    own = query.positives - query.positives_other_camera
    other = [image for image in images if image not in own]
    by_stage1 = sorted(kept, key=lambda hit: -hit.stage1_score)
    stage1 = [image_of[hit.frame_id] for hit in by_stage1]
    labels = {frame.image: frame.boxes for frame in dataset.frames}
    return Scored(
        scene=query.scene,
        metrics=_metrics(images, query.positives)
        | {
            f"{name}_other": value
            for name, value in _metrics(other, query.positives_other_camera).items()
        },
        stage1={n: _share_found(stage1[:n], query.positives) for n in STAGE1_DEPTHS},
        scale_r1=_scale_r1(images, query, labels),
        false_matches=_false_matches(
            [hit for hit, image in zip(kept, images, strict=True) if image not in query.positives]
        ),
        duplicates=_duplicates(kept[:ANSWER_FRAMES]),
        ious=_ious([hit for hit in kept if hit.region], image_of, query, labels, grid),
        query_ms=query_ms,
    )


def _metrics(images: Sequence[str], positives: frozenset[str]) -> dict[str, float | None]:
    if not positives:
        return dict.fromkeys(("map", "r1", "r5", "r10"))
    hits = np.array([image in positives for image in images], dtype=np.bool_)
    return {
        "map": average_precision(hits, len(positives)),
        "r1": recall_at(hits, 1),
        "r5": recall_at(hits, 5),
        "r10": recall_at(hits, 10),
    }


def _share_found(images: Sequence[str], positives: frozenset[str]) -> float | None:
    return len(positives & set(images)) / len(positives) if positives else None


def _scale_r1(
    images: Sequence[str], query: LabelledQuery, labels: Mapping[str, Mapping[str, Box]]
) -> dict[str, float | None]:
    """R@1 on positives of the query's size, and on those of half to twice its size (side)."""
    groups: dict[str, set[str]] = {"same": set(), "half-to-double": set()}
    for image in query.positives:
        box = labels[image].get(query.identity)
        if box is None:
            continue
        ratio = (box.area / query.roi.area) ** 0.5
        if SAME_SCALE[0] <= ratio <= SAME_SCALE[1]:
            groups["same"].add(image)
        elif OTHER_SCALE[0] <= ratio <= OTHER_SCALE[1]:
            groups["half-to-double"].add(image)
    found: dict[str, float | None] = {}
    for name, counted in groups.items():
        left = [image for image in images if image in counted or image not in query.positives]
        found[name] = _metrics(left, frozenset(counted))["r1"]
    return found


def _false_matches(negatives: Sequence[RankedFrame]) -> dict[float, float | None]:
    stated = [hit for hit in negatives if hit.appearance is not None and not hit.on_trail]
    likeness = np.array([hit.appearance for hit in stated], dtype=np.float64)
    camera_n = np.array([hit.camera_id for hit in stated], dtype=np.int64)
    expected = expected_false_matches(likeness, likeness, camera_n)
    if not stated or np.isnan(expected).all():
        return dict.fromkeys(STATED_FALSE_MATCHES)
    return {level: float((expected <= level).sum()) for level in STATED_FALSE_MATCHES}


def _duplicates(kept: Sequence[RankedFrame]) -> dict[str, float]:
    """Share of near-identical results among the first, as single frames and as appearances."""
    camera_n = np.array([hit.camera_id for hit in kept], dtype=np.int64)
    t_n = np.array([hit.t_epoch_s for hit in kept], dtype=np.float64)
    joined = join_appearances(camera_n, t_n, APPEARANCE_GAP_S)[:DUPLICATES_AT]
    shown: dict[str, list[tuple[int, ...]]] = {
        "frames": [(position,) for position in range(min(DUPLICATES_AT, len(kept)))],
        "appearances": [appearance.members for appearance in joined],
    }
    return {
        name: repeated_share(results, camera_n, t_n, APPEARANCE_GAP_S)
        for name, results in shown.items()
    }


def _ious(
    hits: Sequence[RankedFrame],
    image_of: Mapping[int, str],
    query: LabelledQuery,
    labels: Mapping[str, Mapping[str, Box]],
    grid: GridSize,
) -> list[float]:
    """IoU of the returned box with the label, on the true and labelled ones of the first hits."""
    ious = []
    for hit in hits[:BOXES_AT]:
        image = image_of[hit.frame_id]
        label = labels[image].get(query.identity) if image in query.positives else None
        if hit.region is not None and label is not None:
            ious.append(box_iou(hit.box or cells_box(hit.region.cell_index, grid), label))
    return ious


def summarise(scored: Sequence[Scored]) -> dict[str, Any]:
    """The report of one strategy; shape in docs/evaluation.md."""
    scenes: dict[str, Any] = {}
    for scene in sorted({one.scene for one in scored}):
        members = [one for one in scored if one.scene == scene]
        scenes[scene] = {
            name: _mean([one.metrics[name] for one in members]) for name in METRICS
        } | {"queries": len(members)}
    times_ms = [one.query_ms for one in scored]
    ious = [iou for one in scored for iou in one.ious]
    observed = {
        level: _mean([one.false_matches[level] for one in scored]) for level in STATED_FALSE_MATCHES
    }
    return {
        "macro": {name: _mean([fields[name] for fields in scenes.values()]) for name in METRICS},
        "scenes": scenes,
        "stage1_recall": {str(n): _mean([one.stage1[n] for one in scored]) for n in STAGE1_DEPTHS},
        "median_iou": float(np.median(ious)) if ious else None,
        "scale_r1": {
            name: _mean([one.scale_r1[name] for one in scored])
            for name in ("same", "half-to-double")
        },
        "false_match_ratio": {
            f"{level:g}": None if count is None else count / level
            for level, count in observed.items()
        },
        "duplicates_at_20": {
            name: _mean([one.duplicates[name] for one in scored])
            for name in ("frames", "appearances")
        },
        "query_ms": {"p50": percentile(times_ms, 50), "p95": percentile(times_ms, 95)},
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
