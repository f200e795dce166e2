"""What is disturbed: each writer of RIS on a small index, and what must be true afterwards."""

from __future__ import annotations

import hashlib
import io
import random
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import numpy as np
from PIL import Image

from benchmarks.index_state import (
    Described,
    Wrong,
    descriptors,
    frames_of,
    pinned,
    rows,
    wrong_codes,
    wrong_descriptors,
    wrong_frames,
)
from benchmarks.scratch import reader
from models.repositories import codes as codes_record
from models.session import DatabaseUnavailable
from worker import compacting, sealing
from worker.accepting.queries import submit_query
from worker.admin.demo import packaged_footage
from worker.backbones.base import Backbone
from worker.backbones.registry import seal_distance
from worker.context import Context
from worker.core.backbone_spec import BackboneSpec
from worker.core.sampling import IntervalPolicy
from worker.core.search_params import SearchParams
from worker.core.types import Box, Descriptors, ImageArray
from worker.erasure import camera_span, run_erase, submit_erasure
from worker.errors import RisError, ServiceUnavailable
from worker.generations import require_live_generation
from worker.index.codec import codec_named
from worker.index.layout import HEADER_BYTES
from worker.index.shard import damaged_blocks
from worker.ingest import fail_ingest, run_ingest, submit_file
from worker.jobs import Handler, run_job
from worker.query_picture import frame_picture
from worker.rebuilding import fail_reindex, run_reindex
from worker.reindex import remove_generation, submit_reindex
from worker.repair import repair_index

CLIP = next(clip.path for clip in packaged_footage() if clip.camera == "street")
EVERY_S = 2.5
START = datetime(2026, 3, 1, 12, tzinfo=UTC)
HANDLERS = {
    "ingest": Handler(run_ingest, fail_ingest),
    "erase": Handler(run_erase),
    "seal": Handler(sealing.run_seal),
    "compact": Handler(compacting.run_compact),
    "reindex": Handler(run_reindex, fail_reindex),
}
UNTYPED = "internal"
"""An answer that names no cause, which a failing disk must not get."""
_ROUNDING = 1e-3


@dataclass(frozen=True, slots=True)
class Disturbed:
    """One piece of work. ``attempt``: a process tries it, and what it says of that; ``ended``:
    whether it is done; ``wrong``: what is wrong once it is; ``record``: what came of an attempt
    that said nothing."""

    attempt: Callable[[Context], str]
    ended: Callable[[Context], bool]
    wrong: Callable[[Context], Wrong]
    record: Callable[[Context], str] = lambda _context: "killed"


@dataclass(frozen=True, slots=True)
class RememberedBackbone:
    """A backbone that describes each picture once: hundreds of jobs embed the same few."""

    inner: Backbone
    known: dict[bytes, Descriptors] = field(default_factory=dict)

    @property
    def spec(self) -> BackboneSpec:
        return self.inner.spec

    def embed(self, imgs_hwc: Sequence[ImageArray]) -> Descriptors:
        parts = []
        for img_hwc in imgs_hwc:
            key = hashlib.sha256(img_hwc.tobytes()).digest()
            if key not in self.known:
                self.known[key] = self.inner.embed([img_hwc])
            parts.append(self.known[key])
        return Descriptors(
            np.concatenate([part.global_nd for part in parts]),
            np.concatenate([part.patches_ncd for part in parts]),
        )


def small_limits() -> None:
    """Let a few frames be worth sealing and coding, in more than one step."""
    sealing.MIN_FRAMES, sealing.BLOCKS_AT_ONCE = 2, 4
    compacting.MIN_FRAMES, compacting.MIN_LAG, compacting.BLOCKS_AT_ONCE = 2, 1, 3


def prepare(context: Context) -> None:
    """An index with one camera, ``undisturbed``, its frames coded and sealed."""
    ingest(context, "undisturbed")
    compact(context)
    seal(context)


def ingest(
    context: Context, camera: str, start_utc: datetime = START, every_s: float = EVERY_S
) -> None:
    made = submit_file(context, CLIP, camera, IntervalPolicy(every_s), start_utc=start_utc)
    finish(context, uuid.UUID(made.job_id))


def finish(context: Context, job_id: uuid.UUID) -> None:
    """Run a job to its end here; on a crowded machine its lease may run out meanwhile."""
    while _state(context, job_id) not in ("done", "failed"):
        run(context, job_id)
        time.sleep(0.02)


def _state(context: Context, job_id: uuid.UUID) -> str:
    ((state,),) = rows(context, "select state from jobs where id = %s", job_id)
    return str(state)


def run(context: Context, job_id: uuid.UUID) -> str:
    """Try a job here. Says nothing, unless it could not even be claimed: what came of it is in its
    record."""
    try:
        run_job(context, job_id, HANDLERS)
    except DatabaseUnavailable as error:
        return answer_of(error)
    return ""


def compact(context: Context) -> None:
    if compacting.submit_due(context):
        finish(context, _last_job(context))


def seal(context: Context) -> None:
    job_id = sealing.submit_due(context, 0.0)
    if job_id is not None:
        finish(context, job_id)


def _last_job(context: Context) -> uuid.UUID:
    ((job_id,),) = rows(context, "select id from jobs order by created_at desc limit 1")
    return uuid.UUID(str(job_id))


def _of_job(
    job_id: uuid.UUID,
    wrong: Callable[[Context], Wrong],
    again: Callable[[Context], bool] = lambda _context: False,
) -> Disturbed:
    """A job, tried until it has ended. ``again``: does once more what a job left for the next one
    of its kind, as beat does; False when nothing was left."""

    def record(context: Context) -> str:
        statement = "select state, coalesce(error_code, retry_code) from jobs where id = %s"
        ((state, code),) = rows(context, statement, job_id)
        return str(state if state == "done" else code or state)

    def ended(context: Context) -> bool:
        return _state(context, job_id) in ("done", "failed") and not again(context)

    def checked(context: Context) -> Wrong:
        return wrong(context) | {"jobs_failed": int(_state(context, job_id) != "done")}

    return Disturbed(lambda context: run(context, job_id), ended, checked, record)


def _ingest(context: Context, number: int, _around: int) -> Disturbed:
    # Every job keeps the same pictures: without this only the first would write any.
    shutil.rmtree(context.pictures.root, ignore_errors=True)
    camera = f"disturbed-{number}"
    made = submit_file(context, CLIP, camera, IntervalPolicy(EVERY_S), start_utc=START)
    whole = frames_of(context, "undisturbed")
    return _of_job(uuid.UUID(made.job_id), lambda now: wrong_frames(now, camera, whole))


def _erase(context: Context, number: int, _around: int) -> Disturbed:
    """All but the first and the last frame of a camera."""
    ingest(context, camera := f"erased-{number}")
    whole = frames_of(context, camera)
    span, found = camera_span(context, camera, None, None)
    assert found.first_utc is not None
    after_utc = found.first_utc + timedelta(seconds=0.1)
    job_id = submit_erasure(context, replace(span, from_utc=after_utc, to_utc=found.last_utc))
    return _of_job(job_id, lambda now: wrong_frames(now, camera, [whole[0], whole[-1]]))


def _sealed_and_late(context: Context, camera: str) -> None:
    """A camera whose shard is sealed, with frames appended behind."""
    ingest(context, camera)
    seal(context)
    ingest(context, camera, START + timedelta(minutes=5))


def _seal(context: Context, number: int, _around: int) -> Disturbed:
    _sealed_and_late(context, camera := f"sealed-{number}")
    before, whole = descriptors(context, camera), frames_of(context, camera)
    job_id = sealing.submit_due(context, 0.0)
    assert job_id is not None
    least = 1 - seal_distance(require_live_generation(context).backbone) - _ROUNDING

    def again(now: Context) -> bool:
        left = rows(now, "select 1 from shards where sealed_count < frame_count")
        if left:
            seal(now)
        return bool(left)

    def wrong(now: Context) -> Wrong:
        changed = wrong_descriptors(now, camera, before, least)
        return wrong_frames(now, camera, whole) | changed

    return _of_job(job_id, wrong, again)


def _compact(context: Context, number: int, _around: int) -> Disturbed:
    """All codes of a shard, sealed and late ones, as after a repair that found them damaged."""
    _sealed_and_late(context, camera := f"coded-{number}")
    before, whole = descriptors(context, camera), frames_of(context, camera)
    ((shard_id,),) = rows(context, "select max(id) from shards")
    with context.db.transaction() as session:
        codes_record.reset(session, shard_id)
    assert compacting.submit_due(context)
    job_id = _last_job(context)

    def again(now: Context) -> bool:
        left = rows(now, "select 1 from shards where coded_count < frame_count")
        if left:
            compact(now)
        return bool(left)

    def wrong(now: Context) -> Wrong:
        changed = wrong_descriptors(now, camera, before)
        codes = {"codes": wrong_codes(now, camera)}
        return wrong_frames(now, camera, whole) | changed | codes

    return _of_job(job_id, wrong, again)


def _reindex(context: Context, number: int, _around: int) -> Disturbed:
    """With the same backbone; the generation of the last one is removed."""
    if number == 0:  # later ones are compared with what was made from the kept pictures
        finish(context, submit_reindex(context, require_live_generation(context).backbone).job_id)
    for (retired,) in rows(context, "select id from index_generations where state = 'retired'"):
        remove_generation(context, retired)
    before = descriptors(context, "undisturbed")
    whole = frames_of(context, "undisturbed")
    made = submit_reindex(context, require_live_generation(context).backbone)

    def wrong(now: Context) -> Wrong:
        changed = wrong_descriptors(now, "undisturbed", before)
        live = require_live_generation(now).id == made.generation_id
        return wrong_frames(now, "undisturbed", whole) | changed | {"not_live": int(not live)}

    return _of_job(made.job_id, wrong)


def answer_of(error: RisError | OSError) -> str:
    """Its code; the database's absence has one, and any other error of the system is untyped."""
    if isinstance(error, DatabaseUnavailable):
        return ServiceUnavailable.code
    return error.code if isinstance(error, RisError) else UNTYPED


def _repair(context: Context, number: int, _around: int) -> Disturbed:
    """A harmed row of a sealed shard, and a harmed block of one that is not. It is a command: who
    takes over runs it again."""
    if number == 0:
        ingest(context, "single", every_s=1000.0)  # one frame: too few to be sealed
    seal(context)  # what was repaired is whole
    compact(context)
    whole = {camera: frames_of(context, camera) for camera in ("undisturbed", "single")}
    expected = {camera: _harmed(context, camera) for camera in whole}

    def attempt(now: Context) -> str:
        try:
            report = repair_index(now)
        except (RisError, OSError) as error:
            return answer_of(error)
        return "problems" if report.problems else "done"

    def wrong(now: Context) -> Wrong:
        found: Counter[str] = Counter()
        for camera, frames in whole.items():
            found.update(wrong_frames(now, camera, frames))
            found.update(wrong_descriptors(now, camera, expected[camera]))
        return found

    return Disturbed(attempt, lambda now: attempt(now) == "done", wrong)


def _harmed(context: Context, camera: str) -> Described:
    """Harm the first patches of a camera; its descriptors as a repair must make them."""
    expected = descriptors(context, camera)
    generation = require_live_generation(context)
    backbone, codec = context.backbone(generation.backbone), codec_named(generation.codec)
    (shard,) = pinned(reader(context), camera)
    with shard.layout.path_of("patch", 0).open("r+b") as file:
        file.seek(HEADER_BYTES + 7)
        byte = file.read(1)[0]
        file.seek(HEADER_BYTES + 7)
        file.write(bytes([byte ^ 16]))
    harmed = damaged_blocks(shard.layout, shard.sums_n2)
    assert harmed
    for frame_id in shard.f_map.frame_id[sorted(harmed)].tolist():
        made = backbone.embed([frame_picture(context, frame_id)])
        global_d, patches_cd = (
            codec.decode(codec.encode(part[0])) for part in (made.global_nd, made.patches_ncd)
        )
        expected[frame_id] = (global_d, patches_cd)
    return expected


def _upload(context: Context, number: int, around: int) -> Disturbed:
    """A query on a picture: a new one, one that a refused query left, one of another query."""
    chance = random.Random(number)
    img_hwc = np.array([[[chance.randrange(256) for _ in range(3)] for _ in range(48)]] * 48)
    stream = io.BytesIO()
    Image.fromarray(img_hwc.astype(np.uint8)).save(stream, "PNG")
    picture = stream.getvalue()
    sha256 = hashlib.sha256(picture).hexdigest()

    def queries(now: Context) -> int:
        found = rows(now, "select 1 from search_queries where picture_sha256 = %s", sha256)
        return len(found)

    if around % 3 == 1:
        context.uploads.put(picture)
    if around % 3 == 2:
        submit_query(context, Box(0.2, 0.2, 0.8, 0.8), SearchParams(), picture=picture)
    before = queries(context)

    def attempt(now: Context) -> str:
        try:
            submit_query(now, Box(0.2, 0.2, 0.8, 0.8), SearchParams(), picture=picture)
        except (RisError, OSError) as error:
            return answer_of(error)
        return "done"

    def wrong(now: Context) -> Wrong:
        lost = 0
        try:
            lost += now.uploads.load(sha256) != picture
        except RisError:
            lost += 1
        return {"uploads_lost": lost, "not_accepted": int(queries(now) == before)}

    return Disturbed(attempt, lambda now: queries(now) > before or attempt(now) == "done", wrong)


ARRANGE: dict[str, Callable[[Context, int, int], Disturbed]] = {
    "ingest": _ingest,
    "erase": _erase,
    "seal": _seal,
    "compact": _compact,
    "reindex": _reindex,
    "repair": _repair,
    "upload": _upload,
}
"""By name; each gets how many were disturbed before, and how often counting has started over."""
