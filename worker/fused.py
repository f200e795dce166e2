"""The default search's evidence, fused: appearance without background, trail, time, whole frame.

Every piece has its price: a background is made once per camera; the appearance costs what MaxSim
costs, times the number of exemplars; the trail reads the frames before and after the query's own
until the subject is lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from worker.core.background import (
    QUERY_FLOOR,
    joint_likeness,
    novel_similarity,
    novelty,
    novelty_weight,
    weighted_max_similarity,
)
from worker.core.coherence import PIVOT, coherent_similarity, match_levels, pivoted
from worker.core.ranking import InTime, beside_in_time
from worker.core.region_growing import GrowthMode
from worker.core.search_params import Lever
from worker.core.trail import moved_box, shifted_box
from worker.core.types import BoolArray, Box, FloatArray, GridSize, IntArray, Region
from worker.core.zone import only_inside
from worker.index.candidates import Candidates
from worker.index.scorer import (
    CandidateChunk,
    StoredPatches,
    candidate_chunks,
    read_chunk,
    read_chunks,
    reads_at_once,
)
from worker.kernels.region_growing import grow_seedless_chunk
from worker.kernels.threads import thread_pool
from worker.patch_cosines import all_cosines, patch_novelty, query_rows
from worker.scenes import CameraScenes, Place
from worker.trails import Trail, follow

TRAIL_WEIGHT = 1.0
GLOBAL_WEIGHT = 0.1
EXEMPLAR_WEIGHT = 0.5
"""What a exemplar from the trail counts against the query itself."""
MAX_EXEMPLARS = 3
EXEMPLAR_SUPPORT = 0.3
EXEMPLAR_BELIEF = 0.5
LEVEL_SAMPLE_FRAMES = 64


@dataclass(frozen=True, slots=True)
class Exemplar:
    """The subject as one frame shows it: descriptors float32 (q, d) and weights (q,). ``share``:
    what it counts against the query itself. ``frame_id``: of the frame, 0 for the query's own."""

    patches_qd: FloatArray
    weight_q: FloatArray
    share: float = EXEMPLAR_WEIGHT
    frame_id: int = 0


@dataclass(frozen=True, slots=True)
class Subject:
    """What is searched for: the query, its trail, exemplars of the subject, and what speaks
    ``against`` it."""

    scenes: CameraScenes
    query: Exemplar
    cells: IntArray
    grid: GridSize
    box: Box | None
    origin: Place | None
    trail: Trail | None
    exemplars: tuple[Exemplar, ...]
    without: tuple[Lever, ...] = ()
    against: tuple[Exemplar, ...] = ()
    zone_c: BoolArray | None = None
    """Cells of a frame that may match, bool (c,); None: all."""

    def background(self, camera_id: int) -> FloatArray | None:
        """What explains the cells of a camera, float32 (c, d); None when that lever is out."""
        return None if "background" in self.without else self.scenes.background(camera_id)

    def camera_of(self, chunk: CandidateChunk) -> int:
        """The camera that recorded a chunk's frames."""
        return self.scenes.shards[chunk.shard_position].camera_id

    @property
    def global_weight(self) -> float:
        """What the whole-frame cosine counts."""
        return 0.0 if "whole-frame" in self.without else GLOBAL_WEIGHT

    def in_time(self, score_n: FloatArray, shard_position: IntArray, block: IntArray) -> InTime:
        """Scores averaged with their neighbours in time, or as they are."""
        if "time" in self.without:
            none_n = np.full(score_n.shape, np.nan)
            return InTime(score_n, none_n, none_n)
        shards = self.scenes.shards
        camera_n = np.array([shard.camera_id for shard in shards], dtype=np.int64)[shard_position]
        t_n, place_n = self.scenes.times(shard_position, block)
        return beside_in_time(score_n, camera_n, t_n, place_n)


@dataclass(frozen=True, slots=True)
class Evidence:
    """Per candidate: ``score_n`` float32 (n,), what it is ranked by; ``appearance_n`` float32 (n,),
    the likeness alone; ``on_trail_n`` bool (n,); the region that proves the match and its box.

    What they were made of: ``level_q`` float32 (q,), match levels; ``in_time`` of the likeness;
    ``trail_n`` float64 (n,); ``novelty_nc``: float32 (c,) of each."""

    score_n: FloatArray
    appearance_n: FloatArray
    on_trail_n: BoolArray
    regions: list[Region | None]
    boxes: list[Box | None]
    level_q: FloatArray
    in_time: InTime
    trail_n: NDArray[np.float64]
    novelty_nc: list[FloatArray]


def describe_subject(
    scenes: CameraScenes,
    patches_qd: FloatArray,
    cells: IntArray,
    grid: GridSize,
    box: Box | None,
    origin: Place | None,
    without: tuple[Lever, ...] = (),
) -> Subject:
    """Weigh the query's cells and follow its subject. ``origin``: its frame, if it is indexed."""
    weight_q = np.ones(len(patches_qd), dtype=np.float32)
    plain = Exemplar(patches_qd, weight_q)
    subject = Subject(scenes, plain, cells, grid, box, origin, None, (), without)
    if origin is None:
        return subject
    patch_ids = cells[:, 0] * grid.w + cells[:, 1]
    weight_q = cell_weights(patches_qd, patch_ids, scenes.background(scenes.camera_of(origin)))
    if "background" not in without:
        subject = replace(subject, query=Exemplar(patches_qd, weight_q))
    if "trail" in without:
        return subject
    trail = follow(scenes, origin, patches_qd, patch_ids, weight_q, grid)
    exemplars = () if "exemplars" in without else _exemplars(scenes, trail)
    return replace(subject, trail=trail, exemplars=exemplars)


def limited_to(subject: Subject, zone_c: BoolArray | None) -> Subject:
    """The subject searched for inside a zone, bool (c,), only: its trail keeps the frames that show
    it there."""
    if zone_c is None:
        return subject
    trail = subject.trail
    if trail is not None:
        inside = {
            at: point for at, point in trail.points.items() if zone_c[point.belief_c.argmax()]
        }
        trail = replace(trail, points=inside)
    return replace(subject, trail=trail, zone_c=zone_c)


def cell_weights(
    patches_qd: FloatArray, patch_ids: IntArray, background_cd: FloatArray | None
) -> FloatArray:
    """What each cell (q,) of a box counts, float32 (q,): by its novelty where that is known."""
    if background_cd is None:
        return np.ones(len(patches_qd), dtype=np.float32)
    return novelty_weight(novelty(patches_qd[None], background_cd[patch_ids])[0], QUERY_FLOOR)


def _exemplars(scenes: CameraScenes, trail: Trail) -> tuple[Exemplar, ...]:
    """Up to ``MAX_EXEMPLARS`` frames of a trail, evenly over the surer two thirds of it."""
    sure = [place for place, point in trail.points.items() if point.support > EXEMPLAR_SUPPORT]
    sure.sort(key=lambda place: -trail.points[place].support)  # stable: nearest first if equal
    count = min(MAX_EXEMPLARS, len(sure))
    # The last third is left to the doubtful: evenly over the surer two thirds.
    spaced = np.linspace(0, max(0, (2 * len(sure)) // 3), count).astype(np.int64)
    chosen = [sure[min(int(at), len(sure) - 1)] for at in spaced]
    exemplars = []
    for place in chosen:
        belief_c = trail.points[place].belief_c
        at = np.flatnonzero(belief_c > EXEMPLAR_BELIEF)
        patches_cd = scenes.shards[place.shard_position].read("patch", [place.block])[0]
        exemplars.append(Exemplar(patches_cd[at], belief_c[at], frame_id=scenes.frame_id(place)))
    return tuple(exemplars)


@dataclass(frozen=True, slots=True)
class Coarse:
    """Likeness of every searched frame from compact codes: where it lies, and ``appearance_n``
    float32 (n,). ``candidate_m``: int64 (m,), the rows of the candidates, in their order."""

    shard_position: IntArray
    block: IntArray
    appearance_n: FloatArray
    candidate_m: IntArray


def gather_evidence(
    subject: Subject,
    candidates: Candidates,
    growth: GrowthMode | None,
    coarse: Coarse | None,
    threads: int = 1,
) -> Evidence:
    """Score candidates. ``growth``: None ranks by MaxSim and grows rigid regions as proofs only;
    a mode ranks by how coherent the similarities are. ``coarse`` speaks for neighbours in time that
    are no candidates. ``threads`` share the chunks, and each holds the patches of one."""
    level_q = match_levels_of(subject, candidates, threads)
    appearance_n = np.zeros(candidates.count, dtype=np.float32)
    regions: list[Region | None] = [None] * candidates.count
    novelty_nc = [appearance_n] * candidates.count
    chunks = list(candidate_chunks(candidates))
    for camera_id in {subject.camera_of(chunk) for chunk in chunks}:
        subject.background(camera_id)  # made once, not by every thread

    def look(chunk: CandidateChunk) -> _Looked:
        return _look(subject, chunk, level_q, growth)

    threads = max(threads, reads_at_once(subject.scenes.shards, chunks))
    for chunk, looked in zip(chunks, thread_pool(threads).map(look, chunks), strict=True):
        appearance_n[chunk.position] = looked.seen_n
        for at, position in enumerate(chunk.position.tolist()):
            regions[position] = looked.regions[at]
            novelty_nc[position] = looked.novelty_nc[at]
    places = [
        Place(int(s), int(b))
        for s, b in zip(candidates.shard_position, candidates.block, strict=True)
    ]
    if coarse is None:
        in_time = subject.in_time(appearance_n, candidates.shard_position, candidates.block)
    else:
        every_n = coarse.appearance_n.copy()
        every_n[coarse.candidate_m] = appearance_n
        every = subject.in_time(every_n, coarse.shard_position, coarse.block)
        kept = coarse.candidate_m
        in_time = InTime(every.smooth_n[kept], every.before_n[kept], every.after_n[kept])
    points = {} if subject.trail is None else subject.trail.points
    trail_n = TRAIL_WEIGHT * np.array(
        [points[p].support if p in points else 0.0 for p in places], dtype=np.float64
    )
    on_trail_n = np.array([p in points or p == subject.origin for p in places], dtype=np.bool_)
    score_n = in_time.smooth_n + trail_n + subject.global_weight * candidates.score_n
    return Evidence(
        score_n=score_n.astype(np.float32),
        appearance_n=in_time.smooth_n,
        on_trail_n=on_trail_n,
        regions=regions,
        boxes=[_box(subject, place, r) for place, r in zip(places, regions, strict=True)],
        level_q=level_q,
        in_time=in_time,
        trail_n=trail_n,
        novelty_nc=novelty_nc,
    )


class _Looked(NamedTuple):
    """Of a chunk's frames: likeness float32 (m,), regions with cosines, novelty float32 (m, c)."""

    seen_n: FloatArray
    regions: list[Region | None]
    novelty_nc: FloatArray


def _look(
    subject: Subject, chunk: CandidateChunk, level_q: FloatArray, growth: GrowthMode | None
) -> _Looked:
    patches = read_chunk(subject.scenes.shards, chunk)
    novelty_nc = patch_novelty(patches, subject.background(subject.camera_of(chunk)))
    return _Looked(*look_at(subject, patches, novelty_nc, level_q, growth), novelty_nc)


def look_at(
    subject: Subject,
    patches: StoredPatches,
    novelty_nc: FloatArray,
    level_q: FloatArray,
    growth: GrowthMode | None,
) -> tuple[FloatArray, list[Region | None]]:
    """Likeness of n frames, float32 (n,), and their regions with cosines. ``novelty_nc``: how new
    each cell is for its camera."""
    exemplars = [subject.query, *subject.exemplars, *subject.against]
    # One product for all: patches are read from memory once.
    every_ed = np.concatenate([exemplar.patches_qd for exemplar in exemplars])
    own = slice(0, len(subject.query.patches_qd))
    cosine_mec = all_cosines(patches, query_rows(every_ed))
    novel_mec = only_inside(novel_similarity(cosine_mec, novelty_nc), subject.zone_c)
    cosine_mqc, novel_mqc = cosine_mec[:, own], novel_mec[:, own]
    grown = grow_seedless_chunk(
        pivoted(novel_mqc, level_q), subject.cells, subject.grid, PIVOT, growth or "rigid"
    )
    seen_n = _appearance(subject.query, novel_mqc, grown, growth)
    regions = [
        _with_cosines(region, cosine_qc)
        for cosine_qc, region in zip(cosine_mqc, grown, strict=True)
    ]
    return _with_exemplars(subject, seen_n, novel_mec), regions


def _with_exemplars(subject: Subject, seen_n: FloatArray, novel_mec: FloatArray) -> FloatArray:
    """Likeness to the query, float32 (n,), averaged with that to the exemplars by their shares,
    less the greatest likeness to what speaks against the subject. ``novel_mec``: similarities of
    the cells of the query, of the exemplars and of what speaks against it, behind each other."""
    first = len(subject.query.patches_qd)
    likeness_kn = []
    for exemplar in (*subject.exemplars, *subject.against):
        end = first + len(exemplar.patches_qd)
        likeness_kn.append(weighted_max_similarity(novel_mec[:, first:end], exemplar.weight_q))
        first = end
    count = len(subject.exemplars)
    shares = [exemplar.share for exemplar in subject.exemplars]
    return joint_likeness(seen_n, likeness_kn[:count], shares, likeness_kn[count:])


def match_levels_of(subject: Subject, candidates: Candidates, threads: int = 1) -> FloatArray:
    """Match level per query cell over frames taken evenly from the candidates."""
    count = min(LEVEL_SAMPLE_FRAMES, candidates.count)
    chosen = np.linspace(0, candidates.count - 1, count).round().astype(np.int64)
    sample = []
    query = query_rows(subject.query.patches_qd)
    for chunk, patches in read_chunks(subject.scenes.shards, candidates.take(chosen)):
        background_cd = subject.background(subject.camera_of(chunk))
        cosine_mqc = thread_pool(threads).submit(all_cosines, patches, query).result()
        novel_mqc = novel_similarity(cosine_mqc, patch_novelty(patches, background_cd))
        sample.append(novel_mqc if subject.zone_c is None else novel_mqc[:, :, subject.zone_c])
    return match_levels(np.concatenate(sample))


def _appearance(
    query: Exemplar,
    novel_mqc: FloatArray,
    grown: Sequence[Region | None],
    growth: GrowthMode | None,
) -> FloatArray:
    if growth is None:
        return weighted_max_similarity(novel_mqc, query.weight_q)
    coherent = [
        coherent_similarity(novel_qc, region, query.weight_q)
        for novel_qc, region in zip(novel_mqc, grown, strict=True)
    ]
    return np.array(coherent, dtype=np.float32)


def _with_cosines(region: Region | None, cosine_qc: FloatArray) -> Region | None:
    if region is None:
        return None
    similarity = cosine_qc[region.query_index, region.cell_index].astype(np.float32)
    return replace(region, similarity=similarity)


def _box(subject: Subject, place: Place, region: Region | None) -> Box | None:
    """The query's box where the subject is: moved with the trail, else as the region moved."""
    box, grid = subject.box, subject.grid
    if box is None:
        return None
    if subject.trail is not None and place in subject.trail.points:
        point = subject.trail.points[place]
        if point.box is not None:
            return point.box
        belief_c = point.belief_c
        return moved_box(box, subject.trail.start_c, belief_c, grid)
    return box_by_region(subject, region)


def box_by_region(subject: Subject, region: Region | None) -> Box | None:
    """The query's box moved as the region moved; None without either."""
    box, grid = subject.box, subject.grid
    if box is None or region is None:
        return None
    rows, cols = np.divmod(region.cell_index, grid.w)
    moved = np.stack((rows, cols), axis=1) - subject.cells[region.query_index]
    d_row, d_col = moved.mean(axis=0)
    return shifted_box(box, float(d_col) / grid.w, float(d_row) / grid.h)
