"""What a standing query finds, and how often it fires at nothing, on a labelled dataset.

    .venv/bin/python -m benchmarks.standing ../shared/data/ris-dev [--backbone NAME]

Every query of the dataset stands in turn, against every camera. Frames that show its subject, or
may, are taken out of what calibrates it, as if the subject had never been there; the rest of a
camera is cut in two in time: one half calibrates, the other is new, and the other way round. Each
new frame is judged as the watch worker does. Fires of one camera within the cool-down count once.
Prints a JSON line for each bound of false frames a camera-day.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.machine import machine
from benchmarks.scratch import scratch_context
from models.index import IndexGeneration
from worker.context import Context
from worker.core.search_params import SearchParams
from worker.describe import describe_query
from worker.evaluation import index_dataset
from worker.fused import Subject, describe_subject
from worker.index.scorer import patches_of
from worker.index.store import PinnedShard
from worker.labelled import LabelledQuery, read_dataset
from worker.pinning import pin_shards, spec_of
from worker.scenes import CameraScenes
from worker.standing_scores import Judged, camera_reference, chance_rule, judge

BOUNDS = (0.01, 0.1, 1.0, 3.0, 10.0, 100.0)
COOL_DOWN_S = 60.0


@dataclass(frozen=True)
class Fact:
    """A new frame of a camera, judged for a query: whether it shows the subject."""

    query: int
    camera: int
    own_camera: bool
    t_s: float
    positive: bool
    judged: Judged


def facts(
    context: Context,
    generation: IndexGeneration,
    shards: list[PinnedShard],
    query: tuple[int, LabelledQuery],
    frame_ids: dict[str, int],
) -> Iterator[Fact]:
    """Every frame of every camera but the query's own and those that count neither way."""
    number, asked = query
    params = SearchParams()
    own_id = frame_ids[asked.image]
    described = describe_query(context, generation, asked.roi, params, frame_id=own_id)
    scenes = CameraScenes(shards, context.backgrounds)
    origin = scenes.find(own_id)
    grid = spec_of(generation).grid
    subject = describe_subject(
        scenes, described.patches_qd, described.cells, grid, described.box, origin, ("time",)
    )
    positive = {frame_ids[image] for image in asked.positives}
    ignored = {frame_ids[image] for image in asked.ignore} | {own_id}
    by_camera: dict[int, list[PinnedShard]] = {}
    for shard in shards:
        by_camera.setdefault(shard.camera_id, []).append(shard)
    assert origin is not None
    own_camera = scenes.camera_of(origin)
    for camera_id, members in by_camera.items():
        yield from _of_camera(
            context, subject, by_camera, camera_id, members, positive, ignored, number, own_camera
        )


def _of_camera(
    context: Context,
    subject: Subject,
    by_camera: dict[int, list[PinnedShard]],
    camera_id: int,
    members: list[PinnedShard],
    positive: set[int],
    ignored: set[int],
    number: int,
    own_camera: int,
) -> Iterator[Fact]:
    t_all = np.concatenate([shard.t_epoch_s for shard in members])
    middle_s = float(np.median(t_all))
    halves = ((-np.inf, middle_s), (middle_s, np.inf))
    left_out = positive | ignored
    for (from_s, to_s), (new_from_s, new_to_s) in (halves, halves[::-1]):
        given = (members, context.backgrounds, from_s, to_s, left_out)
        reference = camera_reference(*given)
        if reference is None:
            continue
        rule = chance_rule(subject, [reference], None)
        if rule is None:
            everywhere = [
                found
                for other in by_camera.values()
                if (found := camera_reference(other, context.backgrounds, leave_out=left_out))
            ]
            rule = chance_rule(subject, everywhere, None)
        assert rule is not None
        for shard in members:
            inside = (shard.t_epoch_s >= new_from_s) & (shard.t_epoch_s < new_to_s)
            blocks = [
                int(at)
                for at in np.flatnonzero(inside)
                if int(shard.f_map.frame_id[at]) not in ignored
            ]
            if not blocks:
                continue
            seen = judge(subject, rule, reference, patches_of(shard, np.array(blocks)), None)
            for block, judged in zip(blocks, seen, strict=True):
                frame_id = int(shard.f_map.frame_id[block])
                yield Fact(
                    number,
                    camera_id,
                    camera_id == own_camera,
                    float(shard.t_epoch_s[block]),
                    frame_id in positive,
                    judged,
                )


def figures(found: list[Fact], camera_s: float, bound: float) -> dict[str, float | None]:
    """What comes of a bound. Alerts: fires of a query and camera less those in the cool-down."""
    last: dict[tuple[int, int], float] = {}
    alerts = true_alerts = 0
    fired = {True: 0, False: 0}
    hit: set[tuple[int, int]] = set()
    for fact in sorted(found, key=lambda one: (one.query, one.camera, one.t_s)):
        if fact.judged.region is None or fact.judged.false_per_day > bound:
            continue
        fired[fact.positive] += 1
        place = (fact.query, fact.camera)
        if fact.positive:
            hit.add(place)
        if fact.t_s - last.get(place, -np.inf) < COOL_DOWN_S:
            continue
        last[place] = fact.t_s
        alerts += 1
        true_alerts += fact.positive
    shown = {(one.query, one.camera): one.own_camera for one in found if one.positive}
    others = [place for place, own in shown.items() if not own]
    positives = sum(one.positive for one in found)
    return {
        "frame_recall": fired[True] / positives,
        "frame_precision": fired[True] / max(1, fired[True] + fired[False]),
        "camera_recall": len(hit) / len(shown),
        "other_camera_recall": len(hit & set(others)) / len(others) if others else None,
        "alerts": alerts,
        "alert_precision": true_alerts / alerts if alerts else None,
        "false_frames": fired[False],
        "false_alerts_per_camera_day": (alerts - true_alerts) / (camera_s / 86_400.0),
    }


def main() -> None:
    """Run from the command line; the docstring above says how."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--backbone", default="efficientnet-lite0")
    parser.add_argument("--limit", type=int)
    asked = parser.parse_args()
    dataset = read_dataset(asked.dataset)
    with scratch_context(backbone=asked.backbone) as context:
        generation, frame_ids = index_dataset(context, dataset, lambda _text: None)
        with context.db.snapshot() as session:
            given = (session, context.index, context.f_maps, generation, SearchParams())
            shards = pin_shards(*given)
        queries = list(enumerate(dataset.queries))[: asked.limit]
        found = [
            fact
            for query in queries
            for fact in facts(context, generation, shards, query, frame_ids)
        ]
    by_camera: dict[int, list[float]] = {}
    for fact in found:
        by_camera.setdefault(fact.camera, []).append(fact.t_s)
    camera_s = len(queries) * sum(max(t) - min(t) for t in by_camera.values())
    for bound in BOUNDS:
        line = {
            "name": "standing",
            "dataset": asked.dataset.name,
            "backbone": asked.backbone,
            "bound_per_camera_day": bound,
            **figures(found, camera_s, bound),
            "judged": len(found),
            "camera_hours": round(camera_s / 3600, 2),
            "queries": len(queries),
            "machine": machine(),
        }
        sys.stdout.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
