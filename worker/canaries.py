"""Canaries: a box on an indexed frame, searched for, must find that frame."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import structlog

from models.index import IndexGeneration
from models.repositories import canaries as canary_record
from models.repositories import index as index_record
from models.repositories import videos as video_record
from models.video import Frame
from worker.context import Context
from worker.core.background import novel_box, novelty
from worker.core.comparison import TOP_K
from worker.core.search_params import SearchParams
from worker.core.types import Box
from worker.describe import describe_query
from worker.errors import RisError
from worker.pinning import pin_shards, spec_of
from worker.query_picture import frame_picture
from worker.search import search_generation

log = structlog.get_logger()

CHECKED = 8
"""Frames of one check, each of another camera."""
CANARY_PARAMS = SearchParams(without=("background", "time"), group="frame", close_looks=0)
"""The default search without the two parts that rank by other frames than the one looked at: a
frame must be the most alike to itself."""
SELF_SLACK = 1e-3
"""A frame found itself although another scores higher by no more: that is rounding to 8 bits."""
_AROUND = timedelta(hours=12)
"""How far around a frame its camera is searched by a check, so that it costs little however large
the archive is."""
_WHOLE = Box(0.0, 0.0, 1.0, 1.0)
_CENTRE = Box(0.3, 0.3, 0.7, 0.7)


def check_canaries(context: Context) -> tuple[int, int] | None:
    """Ask the live generation for some of its own frames, unless that was done less than
    ``RIS_CANARY_EVERY_S`` ago or somebody waits for an answer; how many were asked for, and how
    many found themselves. None, and nothing is recorded, where none could be asked for.
    """
    with context.db.transaction() as session:
        last = canary_record.last_check(session)
        if last is not None and last.age_s < context.settings.canary_every_s:
            return None
        generation = index_record.live_generation(session)
        if generation is None:
            return None
        frame_ids = canary_record.pick_frames(session, generation.id, CHECKED)
    asked = found = 0
    for frame_id in frame_ids:
        with context.db.transaction() as session:
            if canary_record.somebody_waits(session):
                log.info("canaries_give_way", asked=asked)
                break
        answer = _asked(context, generation, frame_id)
        asked, found = asked + (answer is not None), found + bool(answer)
    if not asked:
        return None
    with context.db.transaction() as session:
        canary_record.record_check(session, generation.id, asked, found)
    log.info("canaries_checked", generation_id=generation.id, asked=asked, found=found)
    return asked, found


def _asked(context: Context, generation: IndexGeneration, frame_id: int) -> bool | None:
    """Whether a frame finds itself; None where it cannot be asked for, which other checks name:
    it was erased meanwhile, or its picture or a service is away."""
    with context.db.transaction() as session:
        frame = video_record.find_frame(session, frame_id)
    if frame is None:
        return None
    params = replace(
        CANARY_PARAMS,
        camera_ids=(frame.camera_id,),
        t_from_utc=frame.t_utc - _AROUND,
        t_to_utc=frame.t_utc + _AROUND,
    )
    try:
        frame_picture(context, frame.id)
        answer = finds_itself(
            context, generation, frame, [], canary_box(context, generation, frame), params
        )
    except RisError as error:
        log.warning("canary_not_asked", frame_id=frame_id, code=error.code, detail=str(error))
        return None
    with context.db.transaction() as session:
        if frame_id not in index_record.indexed_frames(session, generation.id, [frame_id]):
            return None
    if answer is None or not answer[0]:
        log.error("canary_lost", generation_id=generation.id, frame_id=frame_id)
    return answer is not None and answer[0]


def canary_box(context: Context, generation: IndexGeneration, frame: Frame) -> Box:
    """Where the frame differs most from what its camera always shows; the centre where that is not
    known."""
    try:
        own_camera = SearchParams(camera_ids=(frame.camera_id,))
        with context.db.snapshot() as session:
            shards = pin_shards(
                session, context.index, context.f_maps, generation, own_camera, context.damage
            )
        background_cd = context.backgrounds.background(shards) if shards else None
        if background_cd is None:
            return _CENTRE
        every = describe_query(context, generation, _WHOLE, own_camera, frame_id=frame.id)
    except RisError as error:
        if error.retryable:
            raise
        return _CENTRE
    return novel_box(novelty(every.patches_qd[None], background_cd)[0], spec_of(generation).grid)


def finds_itself(
    context: Context,
    generation: IndexGeneration,
    frame: Frame,
    near: list[int],
    box: Box,
    params: SearchParams = CANARY_PARAMS,
) -> tuple[bool, int] | None:
    """Whether a frame, searched for from its picture, finds itself, and how many of the frames
    ``near`` it; None when it cannot be asked for.

    From its picture: rows read back from a generation would find themselves even if they were
    another frame's. Raises what another try may help.
    """
    try:
        descriptors = describe_query(context, generation, box, params, frame_id=frame.id, anew=True)
        ranked = search_generation(
            context, generation, descriptors, params, allow_away=False
        ).ranked
    except RisError as error:
        if error.retryable:
            raise
        log.warning("canary_lost", generation_id=generation.id, detail=str(error))
        return None
    own = next((hit.score for hit in ranked if hit.frame_id == frame.id), None)
    others = [hit.frame_id for hit in ranked if hit.frame_id != frame.id][:TOP_K]
    return own is not None and own >= ranked[0].score - SELF_SLACK, len({*near} & {*others})
