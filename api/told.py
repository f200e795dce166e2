"""What answers hold. Ids, times and names as the glossary has them."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Annotated, Any, Generic, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, Field

from api.problems import shown_detail
from models.jobs import Job
from models.repositories.browse import CameraView, QueryView
from models.search import SearchHit
from models.video import Frame, PrivacyMask, VideoSegment
from worker.core.geometry import cells_box
from worker.core.types import GridSize

Row = TypeVar("Row")
JobState = Literal["queued", "running", "done", "failed"]
AnswerStep = Literal["none", "early", "ranked", "final"]


class Page(BaseModel, Generic[Row]):
    """Some rows of a list; `next_cursor` leads to the next ones, null at the end."""

    items: list[Row]
    next_cursor: str | None


class Failure(BaseModel):
    """Why something failed, or is tried again."""

    code: str
    detail: str


class CameraTold(BaseModel):
    """A camera with what is indexed of it."""

    camera_id: int
    name: str
    retention_days: int | None = Field(description="0: for ever; null: as RIS_RETENTION_DAYS says.")
    frames: int
    first_utc: datetime | None
    last_utc: datetime | None

    @classmethod
    def of(cls, view: CameraView) -> CameraTold:
        """From a row."""
        return cls(
            camera_id=view.camera.id,
            name=view.camera.name,
            retention_days=view.camera.retention_days,
            frames=view.frames,
            first_utc=view.first_utc,
            last_utc=view.last_utc,
        )


class MaskTold(BaseModel):
    """A camera's privacy mask: what new frames are painted with."""

    camera_id: int
    mask_id: int | None = Field(description="null: there is none.")
    areas: list[dict[str, Any]] = Field(description="Boxes and polygons, as in a query.")

    @classmethod
    def of(cls, camera_id: int, mask: PrivacyMask | None) -> MaskTold:
        """From a row."""
        areas = [] if mask is None else mask.areas
        return cls(camera_id=camera_id, mask_id=None if mask is None else mask.id, areas=areas)


class Bucket(BaseModel):
    """Frames of one stretch of the timeline."""

    from_utc: datetime
    frames: int


class Gap(BaseModel):
    """A stretch of whole buckets without a frame."""

    from_utc: datetime
    to_utc: datetime


class Coverage(BaseModel):
    """Where a camera has frames: buckets that hold any, and the gaps between and around them."""

    camera_id: int
    from_utc: datetime
    to_utc: datetime
    bucket_s: int
    frames: int
    buckets: list[Bucket]
    gaps: list[Gap]


class FrameTold(BaseModel):
    """An indexed frame."""

    frame_id: int
    camera_id: int
    segment_id: int
    t_utc: datetime
    pts: int
    h_px: int
    w_px: int
    picture: str = Field(description="Address of the kept picture.")
    thumbnail: str = Field(description="Address of a small one.")

    @classmethod
    def of(cls, frame: Frame) -> FrameTold:
        """From a row."""
        return cls(
            frame_id=frame.id,
            camera_id=frame.camera_id,
            segment_id=frame.segment_id,
            t_utc=frame.t_utc,
            pts=frame.pts,
            h_px=frame.h_px,
            w_px=frame.w_px,
            picture=f"/v1/frames/{frame.id}/picture",
            thumbnail=f"/v1/frames/{frame.id}/thumbnail",
        )


class QueryTold(BaseModel):
    """A query as it stands. `waiting`: why it is tried again; `error`: why it failed."""

    query_id: uuid.UUID
    job_id: uuid.UUID
    state: JobState
    frame_id: int | None
    picture_sha256: str | None
    roi: dict[str, Any]
    params: dict[str, Any]
    generation_id: int | None
    stats: dict[str, Any] | None
    degraded: bool = Field(
        description="Frames were not searched: vectors are damaged, or on storage that is away."
    )
    hits: int
    answer: AnswerStep = Field(
        description="What the hits are: `none` yet; those of the footage nearest to the query"
        " (`early`); those of all footage, whose boxes may become finer (`ranked`); `final`."
    )
    waiting: Failure | None
    error: Failure | None
    created_at: datetime
    finished_at: datetime | None

    @classmethod
    def of(cls, view: QueryView) -> QueryTold:
        """From a row and its job."""
        query, job = view.query, view.job
        stats = query.stats or {}
        return cls(
            query_id=query.id,
            job_id=job.id,
            state=job.state,
            frame_id=query.frame_id,
            picture_sha256=query.picture_sha256,
            roi=query.roi,
            params=query.params,
            generation_id=query.generation_id,
            stats=query.stats,
            degraded=stats.get("frames_lost", 0) + stats.get("frames_away", 0) > 0,
            hits=view.hits,
            answer=query.answer_step,
            waiting=failure(job.retry_code, job.retry_detail),
            error=failure(job.error_code, job.error_detail),
            created_at=query.created_at,
            finished_at=job.finished_at,
        )


def failure(code: str | None, detail: str | None) -> Failure | None:
    """From a job's columns, as whoever asked may know it."""
    return None if code is None else Failure(code=code, detail=shown_detail(code, detail or ""))


class GridTold(BaseModel):
    """Size of the grid that cells count in."""

    h: int
    w: int


class AppearanceTold(BaseModel):
    """The span and number of hits that one stands for."""

    from_utc: datetime
    to_utc: datetime
    frames: int


XyXy = Annotated[list[float], Field(min_length=4, max_length=4)]


class HitTold(BaseModel):
    """A hit: frame, score, and the region that matched, as pairs of cells."""

    rank: int
    frame_id: int
    camera_id: int
    camera_name: str
    t_utc: datetime
    h_px: int
    w_px: int
    score: float
    similarity: float
    coverage: float
    false_matches: float | None
    on_trail: bool
    box: XyXy | None = Field(description="x0, y0, x1, y1 of the subject, 0 to 1.")
    grid: GridTold
    region_cells: list[int] = Field(description="Cells of the hit, row * grid.w + col, by pair.")
    region_query_patches: list[int] = Field(description="Query patch of each pair.")
    appearance: AppearanceTold
    picture: str
    thumbnail: str
    overlay: str = Field(description="Address of the picture with region and box drawn.")

    @classmethod
    def of(cls, hit: SearchHit) -> HitTold:
        """From a row with its frame and camera."""
        frame = hit.frame
        return cls(
            rank=hit.rank,
            frame_id=hit.frame_id,
            camera_id=frame.camera_id,
            camera_name=frame.camera.name,
            t_utc=frame.t_utc,
            h_px=frame.h_px,
            w_px=frame.w_px,
            score=hit.score,
            similarity=hit.similarity,
            coverage=hit.coverage,
            false_matches=hit.false_matches,
            on_trail=hit.on_trail,
            box=hit_box(hit),
            grid=GridTold(h=hit.grid_h, w=hit.grid_w),
            region_cells=hit.region_cell_index,
            region_query_patches=hit.region_query_index,
            appearance=AppearanceTold(
                from_utc=hit.appearance_from_utc or frame.t_utc,
                to_utc=hit.appearance_to_utc or frame.t_utc,
                frames=hit.appearance_frames,
            ),
            picture=f"/v1/frames/{frame.id}/picture",
            thumbnail=f"/v1/frames/{frame.id}/thumbnail",
            overlay=f"/v1/queries/{hit.query_id}/hits/{hit.rank}/overlay",
        )


def hit_box(hit: SearchHit) -> list[float] | None:
    """The recorded box, else the one around the region."""
    if hit.box is not None:
        return hit.box
    if not hit.region_cell_index:
        return None
    cells = np.array(hit.region_cell_index, dtype=np.int64)
    box = cells_box(cells, GridSize(hit.grid_h, hit.grid_w))
    return [box.x0, box.y0, box.x1, box.y1]


class CameraAppearance(BaseModel):
    """An appearance on a camera, shown by its best hit."""

    camera_id: int
    camera_name: str
    from_utc: datetime
    to_utc: datetime
    frames: int
    best: HitTold


class Appearances(BaseModel):
    """The answer as appearances, in order of time."""

    items: list[CameraAppearance]


class SegmentTold(BaseModel):
    """A video segment and how its ingest stands. `outcome` is null until it ended."""

    segment_id: int
    camera_id: int
    job_id: uuid.UUID | None
    state: JobState | None
    start_utc: datetime
    duration_s: float | None
    frames: int
    frames_decoded: int
    decode_errors: int
    outcome: Literal["complete", "partial", "failed"] | None
    waiting: Failure | None
    error: Failure | None
    created_at: datetime
    finished_at: datetime | None

    @classmethod
    def of(cls, segment: VideoSegment, job: Job | None) -> SegmentTold:
        """From a row and its job."""
        return cls(
            segment_id=segment.id,
            camera_id=segment.camera_id,
            job_id=segment.job_id,
            state=None if job is None else job.state,
            start_utc=segment.start_utc,
            duration_s=segment.duration_s,
            frames=segment.frame_count,
            frames_decoded=segment.frames_decoded,
            decode_errors=segment.decode_errors,
            outcome=segment.outcome,
            waiting=None if job is None else failure(job.retry_code, job.retry_detail),
            error=None if job is None else failure(job.error_code, job.error_detail),
            created_at=segment.created_at,
            finished_at=segment.finished_at,
        )


class Health(BaseModel):
    """Whether a process lives, or all it needs is there."""

    status: Literal["ok"]
