"""Frozen description of a backbone: what decides whether two descriptors may be compared."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal

from worker.core.types import GridSize, SizePx
from worker.errors import BackboneMismatch

_NEUTRAL_FIELDS = ("name", "revision", "tau", "licence", "commercial_use", "weights_bytes")

GlobalPooling = Literal["pooled", "cls", "mean", "saliency-mean"]


@dataclass(frozen=True, slots=True)
class BackboneSpec:
    """Compatibility-relevant description of one backbone at one input size.

    ``tau`` is the calibrated match level for this backbone's patch cosine (design, section 4.5).
    It does not change descriptors, so it is left out of ``spec_hash``, as are the licence, and the
    name and revision, which only say where weights came from: ``weights_sha256`` identifies them.
    ``patch_source`` names the layer whose output becomes patch descriptors.
    """

    name: str
    revision: str
    weights_sha256: str
    input_size: SizePx
    patch_px: int
    grid: GridSize
    global_dim: int
    patch_dim: int
    patch_source: str
    global_pooling: GlobalPooling
    mean_rgb: tuple[float, float, float]
    std_rgb: tuple[float, float, float]
    resize: Literal["stretch-bilinear", "stretch-bicubic"]
    tau: float
    licence: str
    commercial_use: bool
    weights_bytes: int

    @property
    def spec_hash(self) -> str:
        """SHA-256 (hex) over the fields that change descriptors."""
        return _spec_hash(self)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON object; :func:`spec_from_json` reads it back."""
        return asdict(self)


@lru_cache(maxsize=64)
def _spec_hash(spec: BackboneSpec) -> str:
    fields = asdict(spec)
    for neutral in _NEUTRAL_FIELDS:
        del fields[neutral]
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def spec_from_json(fields: dict[str, Any]) -> BackboneSpec:
    """Read what ``to_json`` wrote.

    Raises ``BackboneMismatch`` for a spec written by a version with other fields: its descriptors
    cannot be told to be comparable.
    """
    try:
        read = dict(fields)
        read["input_size"] = SizePx(*read["input_size"])
        read["grid"] = GridSize(*read["grid"])
        read["mean_rgb"] = tuple(read["mean_rgb"])
        read["std_rgb"] = tuple(read["std_rgb"])
        return BackboneSpec(**read)
    except (KeyError, TypeError) as error:
        name = fields.get("name", "unknown")
        raise BackboneMismatch(
            f"the spec of backbone {name!r} was recorded by another version of RIS ({error}):"
            f" run that version, or ingest into a new data folder"
        ) from error
