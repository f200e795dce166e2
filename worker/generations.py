"""Which backbone belongs to which index generation."""

from __future__ import annotations

import numpy as np

from models.index import CompactBasis as BasisRow
from models.index import IndexGeneration
from models.repositories import index as index_record
from models.session import Session
from worker.backbones.base import Backbone
from worker.context import Context
from worker.core.compact import CompactBasis
from worker.errors import BackboneMismatch, NotFound


def ensure_live_generation(context: Context) -> IndexGeneration:
    """The live generation; the first is made with ``RIS_BACKBONE`` and ``RIS_CODEC``."""
    with context.db.transaction() as session:
        live = index_record.live_generation(session)
    if live is not None:
        return live
    spec = context.backbone(context.settings.backbone).spec
    with context.db.transaction() as session:
        index_record.lock_generations(session, exclusive=True)
        return index_record.live_generation(session) or index_record.create_generation(
            session,
            backbone=context.settings.backbone,
            spec_hash=spec.spec_hash,
            spec=spec.to_json(),
            codec=context.settings.codec,
            state="live",
        )


def require_live_generation(context: Context) -> IndexGeneration:
    """The live generation. Raises :class:`NotFound` when nothing was ever ingested."""
    with context.db.transaction() as session:
        return require_live(session)


def require_live(session: Session) -> IndexGeneration:
    """The same in the caller's transaction."""
    live = index_record.live_generation(session)
    if live is None:
        raise NotFound("the index is empty: ingest a video first (`ris ingest FILE --camera NAME`)")
    return live


def backbone_of(context: Context, generation: IndexGeneration) -> Backbone:
    """The generation's backbone, checked to make the same descriptors as when it was built.

    Raises :class:`BackboneMismatch` when weights, revision or preprocessing differ.
    """
    backbone = context.backbone(generation.backbone)
    if backbone.spec.spec_hash != generation.spec_hash:
        raise BackboneMismatch(
            f"backbone {generation.backbone!r} here has spec {backbone.spec.spec_hash[:12]},"
            f" index generation {generation.id} was built with {generation.spec_hash[:12]}:"
            f" restore those weights, or run `ris reindex --backbone {generation.backbone}`"
        )
    return backbone


def basis_of(row: BasisRow) -> CompactBasis:
    """A recorded basis as a value."""
    axes_dk = np.frombuffer(row.axes, dtype="<f4").astype(np.float32)
    return CompactBasis(axes_dk.reshape(-1, row.code_dim), row.step)
