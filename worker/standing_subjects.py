"""What a process keeps of standing queries between batches: their subjects, what is known of
cameras, and what chance brings them there."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from models.index import IndexGeneration
from models.repositories import index as index_record
from models.repositories import standing as standing_record
from models.repositories import videos as video_record
from models.repositories.index import ShardFilter
from models.session import Session
from models.standing import StandingQuery
from worker.context import LONGEST_SEARCH_S, Context, LastErasure
from worker.core.region_growing import GrowthMode
from worker.core.roi_json import roi_from_json
from worker.core.search_params import SearchParams, search_params_from_json
from worker.core.zone import zone_cells
from worker.describe import describe_query
from worker.feedback import with_examples
from worker.fused import Subject, describe_subject, limited_to
from worker.fused_search import GROWTH_OF
from worker.index.store import PinnedShard
from worker.pinning import pin_scene, pin_shard, spec_of
from worker.scenes import CameraScenes
from worker.standing_scores import (
    MIN_REFERENCE_FRAMES,
    CameraReference,
    ChanceRule,
    camera_reference,
    chance_rule,
    frames_near,
)

REFERENCE_S = 86_400.0
"""How far back a camera's frames say what chance brings."""
REFERENCE_AGE_S = 3600.0
"""How long what is known of a camera is used, in the time of its frames."""
AROUND_ALERT_S = 60.0
"""Frames no further than this from an alert show its subject, as far as is known."""
MAX_CAMERAS = 512
"""Cameras that are known at a time; some 250 kB each with the default backbone."""
POOLED_SHARDS = 16
_GROWN = 1.5

Span = tuple[datetime, datetime]
"""First and last time of some frames."""


@dataclass(frozen=True, slots=True, eq=False)
class StandingSubject:
    """A standing query ready to be compared. ``known``: its own frame, those marked and those on
    its trail, which show it."""

    subject: Subject
    params: SearchParams
    growth: GrowthMode | None
    known: frozenset[int]


@dataclass(slots=True, eq=False)
class _Known:
    """A camera's reference, for frames of which time it holds, and of how many frames it is."""

    reference: CameraReference
    from_utc: datetime
    to_utc: datetime
    frames: int


@dataclass(slots=True, eq=False)
class WatchMemory:
    """Kept by one process, for one thread at a time; all of it can be made again."""

    subjects: dict[tuple[int, int], StandingSubject] = field(default_factory=dict)
    cameras: dict[tuple[int, int], _Known] = field(default_factory=dict)
    rules: dict[tuple[int, int, int], tuple[CameraReference, ChanceRule | None]] = field(
        default_factory=dict
    )
    erased: LastErasure = field(default_factory=lambda: LastErasure(LONGEST_SEARCH_S))

    def keep_only(self, generation_id: int, standing_ids: Collection[int]) -> None:
        """Forget what is of other generations and of standing queries that do not run."""
        self.subjects = {
            key: kept
            for key, kept in self.subjects.items()
            if key[0] in standing_ids and key[1] == generation_id
        }
        self.rules = {
            key: kept
            for key, kept in self.rules.items()
            if key[0] in standing_ids and key[1] == generation_id
        }
        self.cameras = {key: kept for key, kept in self.cameras.items() if key[0] == generation_id}

    def let_go(self) -> None:
        """Forget everything."""
        self.subjects.clear()
        self.cameras.clear()
        self.rules.clear()

    def shards_of(self, camera_id: int) -> list[PinnedShard]:
        """Shards that what is known of a camera was read from."""
        return [
            shard
            for key, known in self.cameras.items()
            if key[1] == camera_id
            for shard in known.reference.shards
        ]

    def subject_of(
        self, context: Context, generation: IndexGeneration, standing: StandingQuery
    ) -> StandingSubject:
        """The standing query's subject in a generation: described from its picture anew for each.

        Raises what :func:`worker.describe.describe_query` raises.
        """
        key = (standing.id, generation.id)
        if key not in self.subjects:
            self.subjects[key] = _described(context, generation, standing)
        return self.subjects[key]

    def reference_of(
        self,
        context: Context,
        generation: IndexGeneration,
        camera_id: int,
        span_utc: Span,
        new_ids: Collection[int],
    ) -> CameraReference | None:
        """What is known of a camera at the time of some new frames, first and last: from its frames
        of the day before; where these are too few, from those around, less the new ones."""
        first_utc, last_utc = span_utc
        key = (generation.id, camera_id)
        known = self.cameras.get(key)
        fresh = known is not None and known.from_utc <= first_utc and last_utc <= known.to_utc
        if known is not None and fresh and known.reference.sample.count >= MIN_REFERENCE_FRAMES:
            return known.reference
        around = timedelta(seconds=REFERENCE_S)
        wide = (first_utc - around, last_utc + around)
        shards = shards_between(context, generation, [camera_id], wide)
        frames = sum(shard.blocks for shard in shards)
        if known is not None and fresh and frames < known.frames * _GROWN:
            return known.reference
        made = _reference(context, shards, first_utc, new_ids)
        if made is None:
            return None
        age = timedelta(seconds=REFERENCE_AGE_S)
        self.cameras.pop(key, None)
        self.cameras[key] = _Known(made, first_utc - age, last_utc + age, frames)
        while len(self.cameras) > MAX_CAMERAS:
            self.cameras.pop(next(iter(self.cameras)))
        return made

    def rule_of(
        self,
        context: Context,
        standing: StandingQuery,
        subject: StandingSubject,
        generation: IndexGeneration,
        reference: CameraReference,
        others: Callable[[], Sequence[CameraReference]],
    ) -> ChanceRule | None:
        """What chance brings a subject on a camera, by that camera's own frames, else by those of
        others too; None where all are too few. Frames around alerts are taken to show it."""
        key = (standing.id, generation.id, reference.camera_id)
        kept = self.rules.get(key)
        if kept is not None and kept[0] is reference:
            return kept[1]
        with context.db.snapshot() as session:
            raised = standing_record.alert_times(session, standing.id)
        around_s = max(standing.cool_down_s, AROUND_ALERT_S)

        def by_chance(references: Sequence[CameraReference]) -> ChanceRule | None:
            shown = set(subject.known)
            for one in references:
                times = [t_utc.timestamp() for t_utc in raised.get(one.camera_id, ())]
                shown |= frames_near(one, times, around_s)
            return chance_rule(subject.subject, references, subject.growth, shown)

        rule = by_chance([reference]) or by_chance(_as_known(reference, others()))
        self.rules[key] = (reference, rule)
        return rule


def _as_known(
    reference: CameraReference, others: Sequence[CameraReference]
) -> list[CameraReference]:
    """Other cameras as they would look if as little were known of them: where a camera has no
    background, everything in it counts in full, and so it must in what it is compared with."""
    if reference.background_cd is not None:
        return list(others)
    return [replace(other, background_cd=None) for other in others]


def references_between(
    context: Context, generation: IndexGeneration, span_utc: Span, new_ids: Collection[int]
) -> list[CameraReference]:
    """Of cameras that recorded around a time, less the new frames, for one that has too few."""
    around = timedelta(seconds=REFERENCE_S)
    wide = (span_utc[0] - around, span_utc[1] + around)
    by_camera: dict[int, list[PinnedShard]] = {}
    for shard in shards_between(context, generation, None, wide, most=POOLED_SHARDS):
        by_camera.setdefault(shard.camera_id, []).append(shard)
    made = (
        camera_reference(own, context.backgrounds, leave_out=new_ids) for own in by_camera.values()
    )
    return [reference for reference in made if reference is not None]


def shards_between(
    context: Context,
    generation: IndexGeneration,
    camera_ids: Sequence[int] | None,
    span_utc: Span,
    most: int | None = None,
) -> list[PinnedShard]:
    """Shards that hold frames from the first to the last time, pinned as they are now. What lies on
    object storage is old, and left out: a live camera must not wait for it."""
    with context.db.snapshot() as session:
        within = ShardFilter(camera_ids, span_utc[0], span_utc[1] + timedelta(microseconds=1))
        found = index_record.select_shards(session, generation.id, within)[:most]
        context.f_maps.fetch(session, found)
        given = (session, context.index, context.f_maps, generation)
        pinned = [pin_shard(*given, shard, context.damage, local_only=True) for shard in found]
    return [shard for shard in pinned if shard.blocks]


def _reference(
    context: Context,
    shards: Sequence[PinnedShard],
    first_utc: datetime,
    new_ids: Collection[int],
) -> CameraReference | None:
    if not shards:
        return None
    first_s = first_utc.astimezone(UTC).timestamp()
    before = camera_reference(shards, context.backgrounds, first_s - REFERENCE_S, first_s)
    if before is not None and before.sample.count >= MIN_REFERENCE_FRAMES:
        return before
    return camera_reference(shards, context.backgrounds, leave_out=new_ids)


def _described(
    context: Context, generation: IndexGeneration, standing: StandingQuery
) -> StandingSubject:
    params = search_params_from_json(standing.params)
    roi = roi_from_json(standing.roi)
    described = describe_query(
        context,
        generation,
        roi,
        params,
        frame_id=standing.frame_id,
        picture_sha256=standing.picture_sha256,
    )
    examples = [one.frame_id for one in (*params.more, *params.less)]
    with context.db.snapshot() as session:
        shards = _scenes_of(context, session, generation, [standing.frame_id, *examples])
    grid = spec_of(generation).grid
    scenes = CameraScenes(shards, context.backgrounds)
    subject = describe_subject(
        scenes,
        described.patches_qd,
        described.cells,
        grid,
        described.box,
        scenes.find(standing.frame_id),
        tuple(dict.fromkeys((*params.without, "time"))),
    )
    subject = with_examples(subject, described.more, described.less)
    subject = limited_to(subject, zone_cells(params.zone, grid))
    points = {} if subject.trail is None else subject.trail.points
    known = {scenes.frame_id(place) for place in points}
    known |= {one.frame_id for one in params.more}
    known |= set() if standing.frame_id is None else {standing.frame_id}
    nowhere = CameraScenes([], context.backgrounds)
    alone = replace(subject, scenes=nowhere, origin=None, trail=None)
    return StandingSubject(alone, params, GROWTH_OF[params.resolved().strategy], frozenset(known))


def _scenes_of(
    context: Context,
    session: Session,
    generation: IndexGeneration,
    frame_ids: Sequence[int | None],
) -> list[PinnedShard]:
    """The scenes of these frames, each shard once."""
    shards: dict[int, PinnedShard] = {}
    for frame_id in frame_ids:
        frame = None if frame_id is None else video_record.find_frame(session, frame_id)
        if frame is not None:
            given = (session, context.index, context.f_maps, generation, frame, context.damage)
            shards |= {shard.shard_id: shard for shard in pin_scene(*given, local_only=True)}
    return [shard for shard in shards.values() if shard.blocks]
