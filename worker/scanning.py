"""A scan worker's part of a query: score the told shards, exactly as they were pinned."""

from __future__ import annotations

from models.repositories import erasures as erasure_record
from models.repositories import index as index_record
from models.session import Session
from worker.compacting import learn_basis
from worker.context import Context
from worker.errors import IndexDamaged
from worker.index.store import PinnedShard
from worker.pinning import pin_as_told
from worker.scan_message import Json, ScanAnswer, ScanRequest, ToldDamage, request_from_json
from worker.shard_scan import LocalScan, ScanQuery, ShardScores
from worker.tracing import CARRIED, entry, note


def answer_scan(context: Context, message: Json) -> Json:
    """Scores of every told shard that this process can serve as told; why not the others.

    Raises :class:`InputInvalid` for a message that it does not know.
    """
    with entry("scan", message.get(CARRIED), kind="consumer"):
        return _answer(context, request_from_json(message))


def _answer(context: Context, request: ScanRequest) -> Json:
    with context.db.snapshot() as session:
        context.let_go_since(erasure_record.last_finished(session))
        pinned, left = _pinned(context, session, request)
    if pinned and not context.compact.fits(pinned):
        left |= {shard.shard_id: "codes do not fit RIS_COMPACT_MAX_BYTES" for shard in pinned}
        pinned = []
    frames = sum(shard.blocks for shard in pinned)
    note(shards=len(pinned), frames=frames, shards_left=len(left))
    if not pinned:
        return ScanAnswer({}, left).to_json()
    query = ScanQuery(
        request.coarse,
        context.compact.basis(pinned),
        request.background_ck,
        request.global_d,
        request.zone_c,
    )
    try:
        found = LocalScan(context.index, context.compact)(query, pinned)
    except IndexDamaged as error:
        return _damaged(error, pinned, left).to_json()
    return ScanAnswer(_by_shard(pinned, found), left).to_json()


def _pinned(
    context: Context, session: Session, request: ScanRequest
) -> tuple[list[PinnedShard], dict[int, str]]:
    """The told shards that are here as told, and why not the others."""
    generation = index_record.find_generation(session, request.generation_id)
    if generation is None or generation.state == "removed":
        return [], dict.fromkeys((one.shard_id for one in request.shards), "generation is gone")
    learn_basis(context, session, generation)
    folder = str(context.index.generation_folder(generation.id))
    if not context.compact.knows(folder, request.basis_name):
        return [], dict.fromkeys((one.shard_id for one in request.shards), "another basis")
    rows = index_record.shards_by_id(session, [one.shard_id for one in request.shards])
    pinned, left = [], {}
    for one in request.shards:
        row = rows.get(one.shard_id)
        shard = row and pin_as_told(session, context.index, context.f_maps, generation, row, one)
        if shard:
            pinned.append(shard)
        else:
            left[one.shard_id] = "not as it was pinned"
    return pinned, left


def _damaged(error: IndexDamaged, pinned: list[PinnedShard], left: dict[int, str]) -> ScanAnswer:
    """Which shard it is, where that is known. The coordinator meets anything else itself."""
    for shard in pinned:
        if str(shard.layout.folder) == error.folder and error.blocks:
            damage = ToldDamage(shard.shard_id, error.blocks, str(error))
            return ScanAnswer({}, left, damage)
    return ScanAnswer({}, left | {shard.shard_id: str(error) for shard in pinned})


def _by_shard(pinned: list[PinnedShard], found: list[ShardScores]) -> dict[int, ShardScores]:
    return {shard.shard_id: scores for shard, scores in zip(pinned, found, strict=True)}
