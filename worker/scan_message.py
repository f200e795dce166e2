"""What is sent to a scan worker and what it answers, as JSON: arrays of numbers, no pickles.

Arrays travel as little-endian bytes in base64, so that both sides compute with the same bits.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from worker.core.coarse import CoarseQuery
from worker.core.types import BoolArray, FloatArray
from worker.errors import InputInvalid
from worker.index.store import PinnedShard
from worker.shard_scan import ScanQuery, ShardScores

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ToldShard:
    """A shard as the coordinator pinned it: ``frames`` file blocks less the ``lost`` ones, in a
    ``folder`` of that name, ``sealed`` and ``coded`` as far as said. A scan worker serves exactly
    this or says that it cannot."""

    shard_id: int
    folder: str
    frames: int
    sealed: int
    coded: int
    lost: tuple[int, ...] = ()

    def to_json(self) -> list[Any]:
        """The fields in their order."""
        lost = list(self.lost)
        return [self.shard_id, self.folder, self.frames, self.sealed, self.coded, lost]


def told(shard: PinnedShard) -> ToldShard:
    """What is told of a pin."""
    return ToldShard(
        shard_id=shard.shard_id,
        folder=shard.layout.folder.name,
        frames=shard.blocks + len(shard.lost),
        sealed=shard.layout.sealed,
        coded=shard.coded,
        lost=shard.lost,
    )


@dataclass(frozen=True, slots=True, eq=False)
class ScanRequest:
    """One group's part of a query. ``basis_name``: the projection all codes and query rows are in;
    ``background_ck``: by camera of these shards."""

    generation_id: int
    basis_name: str
    coarse: CoarseQuery
    global_d: FloatArray
    background_ck: Mapping[int, FloatArray | None]
    shards: tuple[ToldShard, ...]
    zone_c: BoolArray | None = None

    def to_json(self) -> Json:
        """What :func:`request_from_json` reads."""
        coarse = self.coarse
        return {
            "generation_id": self.generation_id,
            "basis": self.basis_name,
            "query": _packed(coarse.query_qk),
            "weight": _packed(coarse.weight_q),
            "lengths": list(coarse.lengths),
            "shares": list(coarse.shares),
            "against_weight": coarse.against_weight,
            "global": _packed(self.global_d),
            "background": {
                str(camera_id): None if known is None else _packed(known)
                for camera_id, known in self.background_ck.items()
            },
            "shards": [shard.to_json() for shard in self.shards],
            "zone": None if self.zone_c is None else self.zone_c.astype(int).tolist(),
        }


def request_of(generation_id: int, query: ScanQuery, shards: Sequence[PinnedShard]) -> ScanRequest:
    """The part of a query that concerns some shards."""
    cameras = {shard.camera_id for shard in shards}
    return ScanRequest(
        generation_id,
        query.basis.name,
        query.coarse,
        query.global_d,
        {camera_id: query.background_ck[camera_id] for camera_id in cameras},
        tuple(told(shard) for shard in shards),
        query.zone_c,
    )


def request_from_json(message: Json) -> ScanRequest:
    """Raises :class:`InputInvalid` for what no coordinator of this version has sent."""
    try:
        return ScanRequest(
            generation_id=int(message["generation_id"]),
            basis_name=str(message["basis"]),
            coarse=CoarseQuery(
                query_qk=_unpacked(message["query"]),
                weight_q=_unpacked(message["weight"]),
                lengths=[int(length) for length in message["lengths"]],
                shares=[float(share) for share in message["shares"]],
                against_weight=float(message["against_weight"]),
            ),
            global_d=_unpacked(message["global"]),
            background_ck={
                int(camera_id): None if known is None else _unpacked(known)
                for camera_id, known in message["background"].items()
            },
            shards=tuple(
                ToldShard(shard_id, folder, frames, sealed, coded, tuple(lost))
                for shard_id, folder, frames, sealed, coded, lost in message["shards"]
            ),
            zone_c=_zone(message["zone"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputInvalid(f"this is no scan of this version of RIS: {error!r}") from error


def _zone(inside: list[int] | None) -> BoolArray | None:
    return None if inside is None else np.array(inside, dtype=np.int64).astype(np.bool_)


@dataclass(frozen=True, slots=True)
class ToldDamage:
    """Damaged file blocks that a scan worker met in a shard."""

    shard_id: int
    blocks: tuple[int, ...]
    detail: str


@dataclass(frozen=True, slots=True)
class ScanAnswer:
    """Scores of the shards it could serve as told; why not the ``left`` ones; damage it met."""

    scores: Mapping[int, ShardScores]
    left: Mapping[int, str]
    damage: ToldDamage | None = None

    def to_json(self) -> Json:
        """What :func:`answer_from_json` reads."""
        damage = self.damage
        return {
            "scores": {
                str(shard_id): [_packed(scores.appearance_n), _packed(scores.global_n)]
                for shard_id, scores in self.scores.items()
            },
            "left": {str(shard_id): why for shard_id, why in self.left.items()},
            "damage": damage and [damage.shard_id, list(damage.blocks), damage.detail],
        }


def answer_from_json(answer: Json) -> ScanAnswer:
    """Raises :class:`InputInvalid` for what no scan worker of this version has answered."""
    try:
        damage = answer["damage"]
        return ScanAnswer(
            {
                int(shard_id): ShardScores(_unpacked(appearance), _unpacked(globals_))
                for shard_id, (appearance, globals_) in answer["scores"].items()
            },
            {int(shard_id): str(why) for shard_id, why in answer["left"].items()},
            damage and ToldDamage(int(damage[0]), tuple(map(int, damage[1])), str(damage[2])),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputInvalid(f"this is no answer of this version of RIS: {error!r}") from error


def _packed(numbers: FloatArray) -> list[Any]:
    """Shape, and the numbers as they are."""
    contiguous = np.ascontiguousarray(numbers, dtype="<f4")
    return [list(contiguous.shape), base64.b64encode(contiguous.tobytes()).decode("ascii")]


def _unpacked(packed: list[Any]) -> FloatArray:
    shape, text = packed
    try:
        numbers = np.frombuffer(base64.b64decode(text, validate=True), dtype="<f4")
    except binascii.Error as error:
        raise InputInvalid(f"an array is not base64: {error}") from error
    return numbers.reshape(shape).astype(np.float32, copy=False)
