"""What a person said about hits: more like this, not this."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from worker.core.trail import first_belief, moved_box
from worker.core.types import IntArray
from worker.fused import Exemplar, Subject, cell_weights
from worker.ranked_frame import ExampleDescriptors
from worker.scenes import Place
from worker.trails import Trail, TrailPoint, follow

MORE_SHARE = 1.0
"""What a confirmed example counts against the query itself."""
ON_IT = 0.5
"""Belief from which a trail is on what a box shows."""


def with_examples(
    subject: Subject,
    more: Sequence[ExampleDescriptors],
    less: Sequence[ExampleDescriptors],
) -> Subject:
    """The subject with examples: each of ``more`` is searched for as the query is, and followed
    through its own camera; what resembles ``less`` counts less, and a trail that is on it ends
    there. Without any it is the same subject."""
    if not more and not less:
        return subject
    trails = [] if subject.trail is None else [(subject.origin, subject.trail)]
    exemplars = []
    for example in more:
        place, exemplar = _weighed(subject, example)
        exemplars.append(replace(exemplar, share=MORE_SHARE))
        if place is not None and "trail" not in subject.without:
            trails.append((place, _followed(subject, place, example, exemplar)))
    against = []
    for example in less:
        place, exemplar = _weighed(subject, example)
        against.append(exemplar)
        trails = [
            (origin, _cut(subject, trail, origin, place, example)) for origin, trail in trails
        ]
    return replace(
        subject,
        trail=_merged([trail for _, trail in trails]),
        exemplars=(*subject.exemplars, *exemplars),
        against=tuple(against),
    )


def _weighed(subject: Subject, example: ExampleDescriptors) -> tuple[Place | None, Exemplar]:
    """Where the example lies, if among what is searched, and its cells by their novelty there."""
    place = subject.scenes.find(example.frame_id)
    background_cd = None
    if place is not None:
        background_cd = subject.background(subject.scenes.camera_of(place))
    weight_q = cell_weights(example.patches_qd, _patch_ids(subject, example), background_cd)
    return place, Exemplar(example.patches_qd, weight_q, frame_id=example.frame_id)


def _patch_ids(subject: Subject, example: ExampleDescriptors) -> IntArray:
    """0-based patch ids of the example's cells, int64 (q,)."""
    patch_ids: IntArray = example.cells[:, 0] * subject.grid.w + example.cells[:, 1]
    return patch_ids


def _followed(
    subject: Subject, place: Place, example: ExampleDescriptors, exemplar: Exemplar
) -> Trail:
    """The trail of an example, with its own frame on it, as sure as can be."""
    patch_ids = _patch_ids(subject, example)
    trail = follow(
        subject.scenes, place, exemplar.patches_qd, patch_ids, exemplar.weight_q, subject.grid
    )
    points = {
        at: replace(point, box=moved_box(example.box, trail.start_c, point.belief_c, subject.grid))
        for at, point in trail.points.items()
    }
    own = TrailPoint(1.0, first_belief(patch_ids, exemplar.weight_q, subject.grid.cells))
    return replace(trail, points={place: replace(own, box=example.box), **points})


def _cut(
    subject: Subject,
    trail: Trail,
    origin: Place | None,
    place: Place | None,
    example: ExampleDescriptors,
) -> Trail:
    """The trail without what lies at and behind a frame where it is on the wrong thing."""
    point = None if place is None else trail.points.get(place)
    if point is None or place is None or origin is None:
        return trail
    patch_ids = _patch_ids(subject, example)
    if point.belief_c[patch_ids].max() < ON_IT:
        return trail
    start_s, wrong_s = (subject.scenes.time(at) for at in (origin, place))
    kept = {
        at: other
        for at, other in trail.points.items()
        if (subject.scenes.time(at) - start_s) * np.sign(wrong_s - start_s) < abs(wrong_s - start_s)
    }
    return replace(trail, points=kept)


def _merged(trails: Sequence[Trail]) -> Trail | None:
    """All trails as one: of two that reach a frame the surer point counts."""
    if not trails:
        return None
    points: dict[Place, TrailPoint] = {}
    for trail in trails:
        for at, point in trail.points.items():
            if at not in points or point.support > points[at].support:
                points[at] = point
    return Trail(trails[0].start_c, points)
