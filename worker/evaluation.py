"""Evaluation: the product's own ingest and search over a labelled dataset.

A dataset is a folder with ``frames.jsonl`` and ``queries.jsonl`` (docs/evaluation.md). Its pictures
are recorded as frames of their cameras through the same code as video, and every query runs
through the same two-stage search as a user's. Stage 1 is part of what is measured: a positive that
it drops counts as missed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from models.index import IndexGeneration
from models.repositories import videos as video_record
from worker.context import Context
from worker.core.geometry import cells_box, roi_from_xyxy
from worker.core.metrics import average_precision, box_iou, percentile, recall_at
from worker.core.search_params import SearchParams, Strategy
from worker.core.types import Box
from worker.errors import InputInvalid, RoiInvalid
from worker.generations import backbone_of, ensure_live_generation
from worker.pinning import spec_of
from worker.ranked_frame import RankedFrame
from worker.recording import PictureBatch, prepare_batch, record_batch
from worker.search import describe_query, search_generation
from worker.two_stage import exhaustive
from worker.video.picture import load_query_picture

STRATEGIES = (
    "whole-frame",
    "default",
    "max-sim",
    "vote-majority",
    "vote-unique",
    "vote-weighted",
    "vote-weighted-unique",
    "grow-rigid",
    "grow-elastic",
)
STAGE1_DEPTHS = (50, 200)
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_METRICS = ("map", "r1", "r5", "r10", "map_other", "r1_other", "r5_other")

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class LabelledFrame:
    """One picture of the dataset. ``boxes``: identity -> normalised box."""

    image: str
    scene: str
    camera: str
    time_s: float
    boxes: dict[str, Box]


@dataclass(frozen=True, slots=True)
class LabelledQuery:
    """One query: an ROI on a picture and which pictures show the same subject."""

    image: str
    roi: Box
    identity: str
    scene: str
    positives: frozenset[str]
    positives_other_camera: frozenset[str]
    ignore: frozenset[str]


@dataclass(frozen=True, slots=True)
class Dataset:
    """Frames and queries of one split."""

    folder: Path
    frames: tuple[LabelledFrame, ...]
    queries: tuple[LabelledQuery, ...]


def read_dataset(folder: Path) -> Dataset:
    """Read a split. Raises :class:`InputInvalid` naming file and line of what is malformed."""
    sizes: dict[str, tuple[float, float]] = {}

    def frame(fields: dict[str, Any]) -> LabelledFrame:
        w, h = float(fields["width"]), float(fields["height"])
        sizes[fields["image"]] = (w, h)
        boxes = {str(b["id"]): _normalised(b["xyxy"], w, h) for b in fields["boxes"]}
        return LabelledFrame(
            fields["image"],
            fields["scene"],
            fields["camera"],
            float(fields["time"]),
            {identity: box for identity, box in boxes.items() if box is not None},
        )

    def query(fields: dict[str, Any]) -> LabelledQuery:
        image = fields["query_image"]
        if image not in sizes:
            raise ValueError(f"query_image {image!r} is not in frames.jsonl")
        roi = _normalised(fields["roi"], *sizes[image])
        if roi is None:
            raise ValueError(f"query on {image} has an ROI without extent in the picture")
        return LabelledQuery(
            image,
            roi,
            str(fields["id"]),
            fields["scene"],
            frozenset(fields["positives"]),
            frozenset(fields["positives_other_camera"]),
            frozenset(fields["ignore"]) | {image},
        )

    frames = _read_lines(folder / "frames.jsonl", frame)
    return Dataset(folder, tuple(frames), tuple(_read_lines(folder / "queries.jsonl", query)))


_Line = TypeVar("_Line")


def _read_lines(path: Path, read: Callable[[dict[str, Any]], _Line]) -> list[_Line]:
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise InputInvalid(f"{path}: {error.strerror or error}; give a dataset folder") from error
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(read(json.loads(line)))
        except KeyError as error:
            raise InputInvalid(f"{path}:{number}: field {error} is missing") from error
        except (TypeError, ValueError, IndexError, ZeroDivisionError, RoiInvalid) as error:
            raise InputInvalid(f"{path}:{number}: malformed: {error}") from error
    return found


def _normalised(xyxy: Sequence[float], w: float, h: float) -> Box | None:
    x0, x1 = (min(max(xyxy[i] / w, 0.0), 1.0) for i in (0, 2))
    y0, y1 = (min(max(xyxy[i] / h, 0.0), 1.0) for i in (1, 3))
    return roi_from_xyxy([x0, y0, x1, y1]) if x0 < x1 and y0 < y1 else None


def index_dataset(
    context: Context, dataset: Dataset, tell: Tell
) -> tuple[IndexGeneration, dict[str, int]]:
    """Record every picture as a frame of its camera; the frame id of each image."""
    generation = ensure_live_generation(context)
    backbone = backbone_of(context, generation)
    by_camera: dict[str, list[LabelledFrame]] = {}
    for frame in dataset.frames:
        by_camera.setdefault(frame.camera, []).append(frame)
    frame_ids: dict[str, int] = {}
    for camera_name, members in by_camera.items():
        with context.db.transaction() as session:
            camera = video_record.ensure_camera(session, camera_name)
            segment, _ = video_record.ensure_segment(
                session, _segment_values(dataset, camera.id, camera_name)
            )
        step = context.settings.commit_batch
        for start in range(0, len(members), step):
            part = members[start : start + step]
            imgs_hwc = [_load(context, dataset, frame) for frame in part]
            batch = PictureBatch(
                [_EPOCH + timedelta(seconds=frame.time_s) for frame in part],
                range(start, start + len(part)),
                imgs_hwc,
                imgs_hwc,
            )
            prepared = prepare_batch(context, backbone, batch)
            with context.db.transaction() as session:
                ids = record_batch(context, session, segment, generation, prepared)
            frame_ids |= {f.image: frame_id for f, frame_id in zip(part, ids, strict=True)}
            tell(f"indexed {len(frame_ids)} of {len(dataset.frames)} frames")
    return generation, frame_ids


def _segment_values(dataset: Dataset, camera_id: int, camera_name: str) -> dict[str, Any]:
    return {
        "camera_id": camera_id,
        "source_path": str(dataset.folder / camera_name),
        "content_sha256": "0" * 64,
        "start_utc": _EPOCH,
        "start_source": "given",
        "policy": {},
        "policy_key": "dataset",
    }


def _load(context: Context, dataset: Dataset, frame: LabelledFrame) -> Any:
    return load_query_picture(dataset.folder / frame.image, context.settings.query_picture_max_px)


@dataclass(frozen=True, slots=True)
class _Scored:
    """One query's figures under one strategy; None where undefined."""

    scene: str
    metrics: dict[str, float | None]
    stage1: dict[int, float | None]
    ious: list[float]
    query_ms: float


def evaluate_dataset(
    context: Context,
    dataset: Dataset,
    *,
    strategies: Sequence[str] = STRATEGIES,
    base_params: SearchParams | None = None,
    limit: int | None = None,
    tell: Tell = lambda _text: None,
) -> dict[str, Any]:
    """Index the dataset, run every query under every strategy, and sum up.

    The result's shape is a contract, written down in docs/evaluation.md.
    """
    generation, frame_ids = index_dataset(context, dataset, tell)
    image_of = {frame_id: image for image, frame_id in frame_ids.items()}
    queries = dataset.queries[:limit] if limit is not None else dataset.queries
    params = base_params if base_params is not None else SearchParams()
    report: dict[str, Any] = {
        "dataset": dataset.folder.name,
        "backbone": generation.backbone,
        "frames": len(frame_ids),
        "queries": len(queries),
        "strategies": {},
    }
    for name in strategies:
        chosen = replace(params, strategy=Strategy(name))
        if chosen.strategy is Strategy.WHOLE_FRAME:
            # The baseline ranks every frame: nothing is gated before it.
            chosen = exhaustive(chosen, len(frame_ids))
        scored = [
            _run_query(context, dataset, generation, query, chosen, frame_ids, image_of)
            for query in queries
        ]
        report["strategies"][name] = _summary(scored)
        macro_map = report["strategies"][name]["macro"]["map"]
        tell(f"{name}: macro mAP {'undefined' if macro_map is None else f'{macro_map:.4f}'}")
    return report


def _run_query(
    context: Context,
    dataset: Dataset,
    generation: IndexGeneration,
    query: LabelledQuery,
    params: SearchParams,
    frame_ids: dict[str, int],
    image_of: dict[int, str],
) -> _Scored:
    started_s = time.perf_counter()
    frame_id = frame_ids[query.image]
    descriptors = describe_query(context, generation, query.roi, params, frame_id=frame_id)
    ranked, _ = search_generation(
        context,
        generation,
        descriptors,
        params,
        exclude_frame_id=frame_id,
    )
    query_ms = 1000 * (time.perf_counter() - started_s)
    kept = [hit for hit in ranked if image_of[hit.frame_id] not in query.ignore]
    images = [image_of[hit.frame_id] for hit in kept]
    # Positives of the query's own camera are taken out; its negatives stay and must be beaten.
    own = query.positives - query.positives_other_camera
    other = [image for image in images if image not in own]
    by_stage1 = sorted(kept, key=lambda hit: -hit.stage1_score)
    stage1 = [image_of[hit.frame_id] for hit in by_stage1]
    return _Scored(
        query.scene,
        _metrics(images, query.positives)
        | {
            f"{name}_other": value
            for name, value in _metrics(other, query.positives_other_camera).items()
        },
        {n: _share_found(stage1[:n], query.positives) for n in STAGE1_DEPTHS},
        _ious(kept, images, query, dataset, generation),
        query_ms,
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


def _ious(
    ranked: Sequence[RankedFrame],
    images: Sequence[str],
    query: LabelledQuery,
    dataset: Dataset,
    generation: IndexGeneration,
) -> list[float]:
    """IoU of the returned region's box with the label, on hits that are true and labelled."""
    grid = spec_of(generation).grid
    labels = {frame.image: frame.boxes for frame in dataset.frames}
    return [
        box_iou(hit.box or cells_box(hit.region.cell_index, grid), labels[image][query.identity])
        for hit, image in zip(ranked, images, strict=True)
        if hit.region is not None and image in query.positives and query.identity in labels[image]
    ]


def _summary(scored: Sequence[_Scored]) -> dict[str, Any]:
    scenes: dict[str, Any] = {}
    for scene in sorted({one.scene for one in scored}):
        members = [one for one in scored if one.scene == scene]
        scenes[scene] = {
            name: _mean([one.metrics[name] for one in members]) for name in _METRICS
        } | {"queries": len(members)}
    times_ms = [one.query_ms for one in scored]
    ious = [iou for one in scored for iou in one.ious]
    return {
        "macro": {name: _mean([fields[name] for fields in scenes.values()]) for name in _METRICS},
        "scenes": scenes,
        "stage1_recall": {str(n): _mean([one.stage1[n] for one in scored]) for n in STAGE1_DEPTHS},
        "median_iou": float(np.median(ious)) if ious else None,
        "query_ms": {"p50": percentile(times_ms, 50), "p95": percentile(times_ms, 95)},
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
