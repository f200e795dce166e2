"""What is recorded of an answered query: its hits, and before they are final the first of them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
import structlog

from models.index import IndexGeneration
from models.repositories import search as search_record
from models.repositories.scope import FootageScope
from models.search import SearchQuery
from models.session import Session
from worker.accepting.events import tell_query
from worker.bundle.terms import hit_to_bytes, terms_to_bytes
from worker.context import Context
from worker.core.appearances import join_appearances
from worker.core.geometry import cells_box
from worker.core.search_params import SearchParams
from worker.core.types import GridSize
from worker.errors import NotFound, StorageFailed, StorageFull
from worker.jobs import Lease
from worker.ranked_frame import RankedFrame

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Shown:
    """A hit of the answer: the frame shown, and the span and number of frames it stands for."""

    hit: RankedFrame
    from_epoch_s: float
    to_epoch_s: float
    frames: int


def grouped(hits: list[RankedFrame], params: SearchParams) -> list[Shown]:
    """The best frames as they are, or joined. Only these: with every frame that matches anywhere,
    a camera's whole day would hang together."""
    if params.group == "frame":
        return [Shown(hit, hit.t_epoch_s, hit.t_epoch_s, 1) for hit in hits]
    joined = join_appearances(
        np.array([hit.camera_id for hit in hits], dtype=np.int64),
        np.array([hit.t_epoch_s for hit in hits], dtype=np.float64),
        params.appearance_gap_s,
    )
    return [
        Shown(hits[one.best], one.from_epoch_s, one.to_epoch_s, len(one.members)) for one in joined
    ]


@dataclass(frozen=True, slots=True)
class Answer:
    """Where the hits of a running query go; ``scope``: the footage that exists for who asked.
    Recording raises :class:`LeaseLost` when the query is another worker's by now, and
    :class:`NotFound` when it was erased."""

    context: Context
    lease: Lease
    query: SearchQuery
    generation: IndexGeneration
    grid: GridSize
    query_patches: int
    scope: FootageScope

    def record_first(self, step: Literal["early", "ranked"], hits: list[Shown]) -> None:
        """Show hits that are not final yet."""
        with self.context.db.transaction() as session:
            self.lease.hold(session)  # job, then query: the order of all that lock both
            kept = self._kept(session, hits)
            stats = {"query_patches": self.query_patches}
            rows = self._rows(kept)
            search_record.record_first_hits(session, self.query, step, rows, stats)

    def record(self, hits: list[Shown], stats: dict[str, Any]) -> None:
        """Record the final hits and end the job."""
        with self.context.db.transaction() as session:
            self.lease.hold(session)
            kept = self._kept(session, hits)
            terms = _stored_terms(self.context, session, kept)
            rows = self._rows(kept)
            query_id, generation_id = self.query.id, self.generation.id
            told = {**stats, "query_patches": self.query_patches}
            search_record.record_hits(session, query_id, generation_id, told, rows, terms)
            tell_query(session, "query.done", self.query, hits=len(kept))
            self.lease.finish(session, {"hits": len(kept)})

    def _kept(self, session: Session, hits: list[Shown]) -> list[Shown]:
        """Those whose frames were not just erased; they stay until the transaction ends."""
        if not search_record.lock_query(session, self.query.id):
            raise NotFound(f"query {self.query.id} was erased with its footage, or forgotten")
        kept = search_record.frames_kept(session, [shown.hit.frame_id for shown in hits])
        return [shown for shown in hits if shown.hit.frame_id in kept]

    def _rows(self, hits: list[Shown]) -> list[dict[str, Any]]:
        return [_hit_row(place, shown, self.grid) for place, shown in enumerate(hits, start=1)]


def _hit_row(place: int, shown: Shown, grid: GridSize) -> dict[str, Any]:
    hit = shown.hit
    region = hit.region
    assert region is not None  # a frame without one is no hit
    box = hit.box or cells_box(region.cell_index, grid)
    return {
        "rank": place,
        "frame_id": hit.frame_id,
        "score": hit.score,
        "similarity": hit.similarity,
        "coverage": hit.coverage,
        "grid_h": grid.h,
        "grid_w": grid.w,
        "region_query_index": region.query_index.tolist(),
        "region_cell_index": region.cell_index.tolist(),
        "box": [box.x0, box.y0, box.x1, box.y1],
        "on_trail": hit.on_trail,
        "false_matches": hit.false_matches,
        "appearance_from_utc": datetime.fromtimestamp(shown.from_epoch_s, UTC),
        "appearance_to_utc": datetime.fromtimestamp(shown.to_epoch_s, UTC),
        "appearance_frames": shown.frames,
        "terms": None if hit.terms is None else hit_to_bytes(hit.terms),
    }


def _stored_terms(
    context: Context, session: Session, hits: list[Shown]
) -> tuple[str, list[int]] | None:
    """Keep what the search knew beside the frames: name of the file, and the frames whose
    descriptors are in it."""
    if not hits or hits[0].hit.terms is None:
        return None
    terms = hits[0].hit.terms.search
    search_record.lock_uploads(session, exclusive=False)
    try:
        name = context.uploads.put(terms_to_bytes(terms))
    except (StorageFull, StorageFailed) as error:  # a full disk is no reason not to answer
        log.warning("terms_not_kept", detail=str(error))
        return None
    return name, sorted({one.frame_id for one in terms.exemplars})
