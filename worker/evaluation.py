"""Evaluation: the product's own ingest and search over a labelled dataset.

A dataset is a folder with ``frames.jsonl`` and ``queries.jsonl`` (docs/evaluation.md). Its pictures
are recorded as frames of their cameras through the same code as video, and every query runs
through the same two-stage search as a user's. Stage 1 is part of what is measured: a positive that
it drops counts as missed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, get_args

from models.index import IndexGeneration
from models.repositories import videos as video_record
from worker.closer_look import look_closer
from worker.context import Context
from worker.core.examples import Example
from worker.core.geometry import scaled_box
from worker.core.search_params import Lever, SearchParams, Strategy
from worker.describe import describe_query
from worker.generations import backbone_of, ensure_live_generation
from worker.jobs import Handler, run_job
from worker.labelled import Dataset, LabelledFrame, LabelledQuery
from worker.pinning import spec_of
from worker.ranked_frame import RankedFrame
from worker.ranking_figures import BOXES_AT, Scored, score_ranking, summarise
from worker.recording import PictureBatch, prepare_batch, record_batch
from worker.sealing import run_seal, sealed_cameras, submit_due
from worker.search import search_generation
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
_LEVERS: tuple[Lever, ...] = get_args(Lever)
ABLATIONS: dict[str, tuple[Lever, ...]] = {
    **{f"without-{lever}": (lever,) for lever in _LEVERS},
    "without-all": _LEVERS,
}
"""The default with one lever left out, and with none."""
ROI_SCALES = {"roi-1.5": 1.5, "roi-0.7": 0.7}
"""The default with every box drawn larger or smaller about its centre."""
DEPTHS = {"top-200": 200, "top-10000": 10_000}
"""The default with fewer candidates, and with all."""
FEEDBACK = {
    "more-1": ("more",),
    "less-1": ("less",),
    "more-1-less-1": ("more", "less"),
    "marked-left-out": ("more", "less"),
}
"""The default asked again after a person marked hits of its answer: as ``more`` the first true one
that was not followed (its labelled box), as ``less`` the first wrong one (the box shown). Both
frames are then taken out of the ranking, neither right nor wrong; ``marked-left-out`` does only
that, and is what the others are to be compared with."""
PROFILES: dict[str, tuple[str, ...]] = {
    "strategies": STRATEGIES,
    "ablation": ("whole-frame", "default", *ABLATIONS),
    "robustness": ("whole-frame", "default", *ROI_SCALES, *DEPTHS),
    "feedback": ("whole-frame", "default", *FEEDBACK),
}
PROFILES["all"] = tuple(dict.fromkeys(name for names in PROFILES.values() for name in names))
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)

Tell = Callable[[str], None]


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
            with ExitStack() as held, context.db.transaction() as session:
                ids = record_batch(context, session, segment, generation, prepared, held)
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


def evaluate_dataset(
    context: Context,
    dataset: Dataset,
    *,
    strategies: Sequence[str] = STRATEGIES,
    base_params: SearchParams | None = None,
    limit: int | None = None,
    sealed: bool = False,
    tell: Tell = lambda _text: None,
) -> dict[str, Any]:
    """Index the dataset, run every query under every strategy, and sum up.

    ``sealed``: the shards are sealed before they are searched, as those of past hours are.
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
    if sealed:
        job_id = submit_due(context, after_s=0.0)
        if job_id is not None:
            run_job(context, job_id, {"seal": Handler(run_seal)})
        report["sealed"] = [asdict(camera) for camera in sealed_cameras(context, generation)]
    for variant in (_variant(name, params, len(frame_ids)) for name in strategies):
        scored = [
            _run_query(context, dataset, generation, query, variant, frame_ids, image_of)
            for query in queries
        ]
        report["strategies"][variant.name] = summarise(scored)
        macro_map = report["strategies"][variant.name]["macro"]["map"]
        shown = "undefined" if macro_map is None else f"{macro_map:.4f}"
        tell(f"{variant.name}: macro mAP {shown}")
    return report


@dataclass(frozen=True, slots=True)
class Variant:
    """One row of the report: a strategy, or the default with something changed."""

    name: str
    params: SearchParams
    roi_scale: float = 1.0
    feedback: tuple[str, ...] = ()
    looks: int = 0
    """Hits whose box a closer look finds. It moves no figure but the boxes', and takes a minute or
    more: only the row ``default`` has it."""


def _variant(name: str, params: SearchParams, frames: int) -> Variant:
    if name in ABLATIONS:
        return Variant(name, replace(params, without=ABLATIONS[name]))
    if name in ROI_SCALES:
        return Variant(name, params, ROI_SCALES[name])
    if name in FEEDBACK:
        return Variant(name, params, feedback=FEEDBACK[name])
    if name in DEPTHS:
        return Variant(name, replace(params, top_n=DEPTHS[name]))
    chosen = replace(params, strategy=Strategy(name))
    # The baseline ranks every frame: nothing is gated before it.
    whole = chosen.strategy is Strategy.WHOLE_FRAME
    looks = BOXES_AT if chosen.strategy is Strategy.DEFAULT else 0
    return Variant(name, exhaustive(chosen, frames) if whole else chosen, looks=looks)


def _run_query(
    context: Context,
    dataset: Dataset,
    generation: IndexGeneration,
    query: LabelledQuery,
    variant: Variant,
    frame_ids: dict[str, int],
    image_of: dict[int, str],
) -> Scored:
    frame_id = frame_ids[query.image]
    roi = scaled_box(query.roi, variant.roi_scale)
    params = variant.params

    def ask() -> Sequence[RankedFrame]:
        descriptors = describe_query(context, generation, roi, params, frame_id=frame_id)
        return search_generation(
            context, generation, descriptors, params, exclude_frame_id=frame_id
        ).ranked

    if variant.feedback:
        marked = _marked(ask(), image_of, query, dataset)
        chosen = {name: marked[name] for name in variant.feedback}
        if variant.name != "marked-left-out":
            params = replace(params, more=chosen.get("more", ()), less=chosen.get("less", ()))
        judged = {image_of[e.frame_id] for examples in marked.values() for e in examples}
        query = replace(query, ignore=query.ignore | judged, positives=query.positives - judged,
            positives_other_camera=query.positives_other_camera - judged)  # fmt: skip
    started_s = time.perf_counter()
    ranked = ask()
    query_ms = 1000 * (time.perf_counter() - started_s)
    counted = [
        hit
        for hit in ranked
        if hit.region is not None and image_of[hit.frame_id] not in query.ignore
    ]
    looked_at = look_closer(context, generation, counted[: variant.looks], roi, frame_id=frame_id)
    found = {hit.frame_id: hit for hit in looked_at}
    ranked = [found.get(hit.frame_id, hit) for hit in ranked]
    return score_ranking(ranked, image_of, query, dataset, spec_of(generation).grid, query_ms)


def _marked(
    ranked: Sequence[RankedFrame],
    image_of: dict[int, str],
    query: LabelledQuery,
    dataset: Dataset,
) -> dict[str, tuple[Example, ...]]:
    """What a person would mark in an answer; see ``FEEDBACK``."""
    labels = {frame.image: frame.boxes for frame in dataset.frames}
    marked: dict[str, tuple[Example, ...]] = {"more": (), "less": ()}
    for hit in ranked:
        image = image_of[hit.frame_id]
        if image in query.ignore or hit.region is None or hit.box is None:
            continue
        label = labels[image].get(query.identity)
        if image not in query.positives and not marked["less"]:
            marked["less"] = (Example(hit.frame_id, hit.box),)
        elif image in query.positives and label and not hit.on_trail and not marked["more"]:
            marked["more"] = (Example(hit.frame_id, label),)
    return marked
