"""Evidence bundles: what was recorded of some hits, with what it was made from, in one signed file.

Everything is read first, then packed and signed, then recorded in one transaction that makes sure
that none of it was erased meanwhile.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import structlog

from models.access import AuditEntry
from models.index import IndexGeneration
from models.repositories import evidence as evidence_record
from models.repositories import index as index_record
from models.repositories import search as search_record
from models.repositories.evidence import FrameFacts
from models.repositories.jobs import ClaimedJob
from models.search import EvidenceExport, SearchHit, SearchQuery
from models.session import Session
from models.video import Frame
from worker import VERSION
from worker.accepting.audit import record_act
from worker.accepting.desk import WORKER
from worker.accepting.evidence import KEPT_S
from worker.accepting.queries import discard_uploads
from worker.bundle.facts import entry_fields, frame_fields, record_fields, time_text
from worker.bundle.manifest import hit_folder, sealed_bundle, sha256_of
from worker.bundle.readme import readme_text
from worker.bundle.rematching import SEARCH_FOLDER, StoredFrame, rematch_fields
from worker.bundle.signing import SigningKey, fingerprint, own_key
from worker.bundle.terms import (
    hit_from_bytes,
    hit_to_fields,
    npy,
    terms_from_bytes,
    terms_to_files,
)
from worker.context import Context
from worker.core.rematch import HitTerms, SearchTerms, rematch
from worker.core.roi_json import roi_from_json
from worker.core.types import Box, GridSize
from worker.errors import IndexDamaged, NotFound, SetupFailed
from worker.index.layout import KINDS
from worker.index.shard import read_blocks, read_stored
from worker.jobs import Lease, Outcome
from worker.pinning import layout_of
from worker.query_picture import query_picture
from worker.video.picture import HitPicture, draw_overlay, draw_roi

log = structlog.get_logger()

OVERLAY_MAX_SIDE_PX = 1920
NOT_KEPT = (
    "what the search knew is not kept: an older version made it, its disk took nothing more, or"
    " footage it learnt from was erased"
)
NO_ROWS = "the descriptors of this frame are no longer in the index it was found in"
DAMAGED_ROWS = "the stored descriptors of this frame are damaged"


@dataclass(frozen=True, slots=True)
class _Read:
    """What an export is made from, as one transaction saw it."""

    export: EvidenceExport
    query: SearchQuery
    generation: IndexGeneration
    hits: Sequence[SearchHit]
    facts: Mapping[int, FrameFacts]
    hit_terms: Mapping[int, bytes]
    names: Mapping[int, str]
    audit: Sequence[AuditEntry]


def run_evidence(context: Context, job: ClaimedJob, lease: Lease) -> Outcome:
    """Make the bundle of one recorded export."""
    key = _key(context)
    with context.db.snapshot() as session:
        read = _read(session, job)
    bundle = make_bundle(context, read, key)
    sha256, signed_by = sha256_of(bundle), fingerprint(key.public_pem)
    export = read.export
    with context.db.transaction() as session:
        if not search_record.lock_query(session, export.query_id):
            raise NotFound(f"query {export.query_id} was erased with its footage, or forgotten")
        if search_record.frames_kept(session, export.frame_ids) != set(export.frame_ids):
            raise NotFound(f"footage of query {export.query_id} was erased: search again")
        search_record.lock_uploads(session, exclusive=False)
        context.uploads.require_free(context.settings.min_free_bytes)
        context.uploads.put(bundle)
        evidence_record.record_content(session, export.id, sha256, len(bundle), signed_by)
        lease.finish(session, {"bytes": len(bundle)})
        record_act(
            session,
            WORKER,
            "evidence.made",
            evidence_id=str(export.id),
            query_id=str(export.query_id),
            sha256=sha256,
            bytes=len(bundle),
            signed_by=signed_by,
        )
    return "finished"


def _key(context: Context) -> SigningKey:
    """The key to sign with; errors do not tell where it lies."""
    try:
        return own_key(context.settings)
    except SetupFailed as error:
        log.error("evidence_key_unusable", detail=str(error))
        raise SetupFailed(
            "the key that evidence is signed with cannot be used: `ris evidence key` says why"
        ) from None


def drop_old(context: Context) -> int:
    """Forget bundles that were kept for their time; returns how many."""
    with context.db.transaction() as session:
        names = evidence_record.remove_old(session, KEPT_S)
    return discard_uploads(context, names) if names else 0


def _read(session: Session, job: ClaimedJob) -> _Read:
    export = evidence_record.of_job(session, job.id)
    if export is None:
        raise NotFound(f"job {job.id} has no export: erased with its footage, or forgotten")
    query = search_record.find_query(session, export.query_id)
    assert query is not None  # the export goes with it
    generation = index_record.find_generation(session, query.generation_id or 0)
    wanted = set(export.ranks)
    hits = [hit for hit in search_record.list_hits(session, query.id) if hit.rank in wanted]
    if generation is None or len(hits) != len(wanted):
        raise NotFound(f"query {query.id} has no longer the hits {sorted(export.ranks)}")
    frame_ids = [hit.frame_id for hit in hits] + [query.frame_id or 0]
    keys = [one for one in (query.key_id, export.key_id) if one is not None]
    found = (
        evidence_record.act_on(session, act, name, str(about.id), about.created_at)
        for act, name, about in (
            ("query.submit", "query_id", query),
            ("evidence.order", "evidence_id", export),
        )
    )
    return _Read(
        export,
        query,
        generation,
        hits,
        evidence_record.frame_facts(session, frame_ids),
        evidence_record.hit_terms(session, query.id, export.ranks),
        evidence_record.key_names(session, keys),
        [entry for entry in found if entry is not None],
    )


def make_bundle(context: Context, read: _Read, key: SigningKey) -> bytes:
    """Read pictures and descriptors, match every hit again, pack and sign."""
    search = _terms(context, read.query)
    files: dict[str, bytes] = {}
    query_told = _query(context, read, files)
    hits = [_hit(context, read, hit, search, files) for hit in read.hits]
    terms = None
    if search is not None:
        terms, made = terms_to_files(search, SEARCH_FOLDER)
        files |= made
    generation = read.generation
    told = {
        "ris_version": VERSION,
        "made_utc": time_text(datetime.now(UTC)),
        "export": {
            "evidence_id": str(read.export.id),
            "ordered_utc": time_text(read.export.created_at),
            "asked_by": _who(read, read.export.key_id),
            "ranks": read.export.ranks,
        },
        "query": query_told,
        "index": {
            "generation_id": generation.id,
            "backbone": generation.backbone,
            "spec_hash": generation.spec_hash,
            "spec": generation.spec,
            "codec": generation.codec,
        },
        "search": {"terms": terms},
        "hits": hits,
        "audit": [entry_fields(entry) for entry in read.audit],
    }
    told = json.loads(json.dumps(told))  # tuples and NumPy's numbers never reach a manifest
    return sealed_bundle(told, files, readme_text(told, fingerprint(key.public_pem)), key)


def _terms(context: Context, query: SearchQuery) -> SearchTerms | None:
    """What the search knew; None where that is not kept, or lost."""
    if query.terms_sha256 is None:
        return None
    try:
        return terms_from_bytes(context.uploads.read(query.terms_sha256))
    except (NotFound, IndexDamaged) as error:
        log.error("terms_lost", query_id=str(query.id), detail=str(error))
        return None


def _who(read: _Read, key_id: int | None) -> dict[str, Any]:
    if key_id is None:
        return {"key_id": None, "label": "command line"}
    return {"key_id": key_id, "label": read.names.get(key_id)}


def _query(context: Context, read: _Read, files: dict[str, bytes]) -> dict[str, Any]:
    query = read.query
    facts = None if query.frame_id is None else read.facts[query.frame_id]
    if facts is None:
        name, raw = "query/picture", context.uploads.load(str(query.picture_sha256))
    else:
        name, raw = "query/picture.jpg", _picture(context, facts.frame)
    files[name] = raw
    drawn = query_picture(context, query.frame_id, query.picture_sha256)
    roi = roi_from_json(query.roi)
    files["query/picture-with-region.jpg"] = draw_roi(drawn, roi, OVERLAY_MAX_SIDE_PX)
    return {
        "query_id": str(query.id),
        "asked_by": _who(read, query.key_id),
        "asked_utc": time_text(query.created_at),
        "picture": name,
        "frame": None if facts is None else frame_fields(facts),
        "roi": query.roi,
        "params": query.params,
        "stats": query.stats,
    }


def _hit(
    context: Context,
    read: _Read,
    hit: SearchHit,
    search: SearchTerms | None,
    files: dict[str, bytes],
) -> dict[str, Any]:
    """What the manifest tells of a hit; its files go into ``files``."""
    folder, frame = hit_folder(hit.rank), hit.frame
    files[f"{folder}picture.jpg"] = _picture(context, frame)
    files[f"{folder}picture-with-match.jpg"] = _drawn(context, hit)
    record = record_fields(hit)
    told = {
        "rank": hit.rank,
        "frame": frame_fields(read.facts[hit.frame_id]),
        "picture": f"{folder}picture.jpg",
        "record": record,
        "terms": None,
        "rematch": None,
        "why_no_rematch": NOT_KEPT,
    }
    if search is None or hit.rank not in read.hit_terms:
        return told
    terms = hit_from_bytes(read.hit_terms[hit.rank], search)
    try:
        stored = stored_frame(context, read.generation, hit.frame_id)
    except IndexDamaged as error:
        log.error("index_damaged", frame_id=hit.frame_id, detail=str(error))
        return told | {"why_no_rematch": DAMAGED_ROWS}
    if stored is None:
        return told | {"why_no_rematch": NO_ROWS}
    return told | _rematched(terms, stored, record, folder, files)


def _rematched(
    terms: HitTerms,
    stored: StoredFrame,
    record: Mapping[str, Any],
    folder: str,
    files: dict[str, bytes],
) -> dict[str, Any]:
    files |= stored.files(folder)
    files[f"{folder}novelty.npy"] = npy(terms.novelty_c)
    made = rematch(terms, *stored.decoded())
    return {
        "terms": hit_to_fields(terms),
        "rematch": rematch_fields(made, record),
        "why_no_rematch": None,
    }


def _picture(context: Context, frame: Frame) -> bytes:
    """The kept picture; errors do not tell where it lies."""
    try:
        return context.pictures.read(frame.picture_sha256)
    except (NotFound, IndexDamaged) as error:
        log.error("picture_lost", frame_id=frame.id, detail=str(error))
        raise type(error)(
            f"the kept picture of frame {frame.id} is gone or damaged: leave that hit out;"
            " `ris verify` says more"
        ) from None


def _drawn(context: Context, hit: SearchHit) -> bytes:
    picture = HitPicture(
        img_hwc=context.pictures.load(hit.frame.picture_sha256),
        rank=hit.rank,
        camera=hit.frame.camera.name,
        t_utc=hit.frame.t_utc,
        score=hit.score,
        cell_index=np.array(hit.region_cell_index, dtype=np.int64),
        grid=GridSize(hit.grid_h, hit.grid_w),
        box=None if hit.box is None else Box(*hit.box),
    )
    return draw_overlay(picture, OVERLAY_MAX_SIDE_PX, "JPEG")


def stored_frame(
    context: Context, generation: IndexGeneration, frame_id: int
) -> StoredFrame | None:
    """Descriptors of a frame as they lie in a generation; None where it has none of it.

    Raises :class:`IndexDamaged`, and :class:`ObjectStoreUnavailable` where they lie elsewhere.
    """
    revision = None
    while True:
        with context.db.transaction() as session:
            found = index_record.find_run(session, generation.id, frame_id)
        if found is None:
            return None
        shard, run = found
        layout = layout_of(context.index, generation, shard)
        at = np.array([run.start_row // layout.cells], dtype=np.int64)
        known = -1 if run.global_crc32 is None else run.global_crc32
        sums_n2 = np.array([[known, run.crc32]], dtype=np.int64)
        try:
            for kind in KINDS:
                read_blocks(layout, kind, at, sums_n2)
            (global_nd, _), (patches_ncd, _) = (read_stored(layout, kind, at) for kind in KINDS)
        except IndexDamaged:
            if shard.revision == revision:
                raise
            revision = shard.revision  # a repair may just have replaced the files
            continue
        return StoredFrame(layout.codec, np.array(patches_ncd[0]), np.array(global_nd[0]))
