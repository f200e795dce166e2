"""What a search knew, as bytes: arrays in NumPy's own format, the rest as JSON."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from worker.bundle.archive import read_archive, write_archive
from worker.core.region_growing import CoverageKind, GrowthMode
from worker.core.rematch import SCORINGS, ExemplarTerms, HitTerms, SearchTerms
from worker.core.types import GridSize
from worker.errors import EvidenceInvalid

_FIELDS = "terms.json"
_ARRAYS = ("cells", "patches_qd", "global_d", "weight_q", "level_q", "zone_c")
_PLAIN = ("scoring", "growth", "tau", "alpha", "coverage", "k", "k_s", "global_weight")
_HIT_NUMBERS = np.dtype("<f8")


def npy(array: NDArray[Any]) -> bytes:
    """An array as a .npy file, the same bytes for the same array."""
    out = io.BytesIO()
    np.lib.format.write_array(out, np.ascontiguousarray(array), (1, 0), allow_pickle=False)
    return out.getvalue()


def read_npy(name: str, files: Mapping[str, bytes], dtype: str, axes: int) -> NDArray[Any]:
    """An array of a .npy file. Raises :class:`EvidenceInvalid` unless it is of that kind."""
    try:
        found = np.load(io.BytesIO(files[name]), allow_pickle=False)
    except KeyError:
        raise EvidenceInvalid(f"{name} is missing") from None
    except (ValueError, EOFError, OSError, MemoryError, OverflowError) as error:
        raise EvidenceInvalid(f"{name} is no array: {error}") from None
    if not isinstance(found, np.ndarray) or found.dtype != np.dtype(dtype) or found.ndim != axes:
        raise EvidenceInvalid(f"{name} is no array of {dtype} with {axes} axes")
    return found


def terms_to_files(terms: SearchTerms, folder: str = "") -> tuple[dict[str, Any], dict[str, bytes]]:
    """The plain fields, and files below ``folder`` with the arrays."""
    fields: dict[str, Any] = {name: getattr(terms, name) for name in _PLAIN}
    fields["grid"] = list(terms.grid)
    files = {
        f"{folder}{name}.npy": npy(getattr(terms, name))
        for name in _ARRAYS
        if getattr(terms, name) is not None
    }
    fields["exemplars"] = []
    for place, one in enumerate(terms.exemplars, start=1):
        about = {"frame_id": one.frame_id, "share": float(one.share), "against": one.against}
        fields["exemplars"].append(about)
        files[f"{folder}exemplar-{place}-patches_qd.npy"] = npy(one.patches_qd)
        files[f"{folder}exemplar-{place}-weight_q.npy"] = npy(one.weight_q)
    return fields, files


def terms_from_files(
    fields: Mapping[str, Any], files: Mapping[str, bytes], folder: str = ""
) -> SearchTerms:
    """Read back. Raises :class:`EvidenceInvalid` for what no search can have known."""

    def floats(name: str, axes: int = 1) -> NDArray[Any]:
        return read_npy(f"{folder}{name}.npy", files, "<f4", axes)

    try:
        grid = GridSize(*(int(side) for side in fields["grid"]))
        plain = {name: fields[name] for name in _PLAIN}
        known = (SCORINGS, get_args(GrowthMode), get_args(CoverageKind))
        for name, values in zip(("scoring", "growth", "coverage"), known, strict=True):
            if plain[name] not in values:
                raise EvidenceInvalid(f"{name} {plain[name]!r} is not known to this version")
        fused = plain["scoring"].startswith("fused")
        exemplars = tuple(
            ExemplarTerms(
                int(one["frame_id"]),
                floats(f"exemplar-{place}-patches_qd", 2),
                floats(f"exemplar-{place}-weight_q"),
                float(one["share"]),
                bool(one["against"]),
            )
            for place, one in enumerate(fields["exemplars"], start=1)
        )
        zone = f"{folder}zone_c.npy"
        terms = SearchTerms(
            **plain,
            grid=grid,
            cells=read_npy(f"{folder}cells.npy", files, "<i8", 2),
            patches_qd=floats("patches_qd", 2),
            global_d=floats("global_d"),
            weight_q=floats("weight_q"),
            level_q=floats("level_q") if fused else None,
            zone_c=read_npy(zone, files, "|b1", 1) if zone in files else None,
            exemplars=exemplars,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise EvidenceInvalid(f"what the search knew cannot be read: {error!r}") from None
    _check_shapes(terms)
    return terms


def _check_shapes(terms: SearchTerms) -> None:
    q, d = terms.patches_qd.shape
    fit = terms.cells.shape == (q, 2) and terms.weight_q.shape == (q,)
    fit &= terms.level_q is None or terms.level_q.shape == (q,)
    fit &= terms.zone_c is None or terms.zone_c.shape == (terms.grid.cells,)
    for one in terms.exemplars:
        fit &= one.patches_qd.shape == (one.weight_q.size, d)
    if not fit or q == 0:
        raise EvidenceInvalid("what the search knew does not fit together")


def terms_to_bytes(terms: SearchTerms) -> bytes:
    """Everything in one piece; :func:`terms_from_bytes` reads it back."""
    fields, files = terms_to_files(terms)
    return write_archive({_FIELDS: json.dumps(fields).encode(), **files})


def terms_from_bytes(content: bytes) -> SearchTerms:
    """Read back. Raises :class:`EvidenceInvalid`."""
    files, _ = read_archive(content)
    return terms_from_files(json.loads(files[_FIELDS]), files)


def hit_to_bytes(terms: HitTerms) -> bytes:
    """What was known of one frame, without what the search knew."""
    numbers = np.array([terms.before, terms.after, terms.trail], dtype=_HIT_NUMBERS)
    return numbers.tobytes() + terms.novelty_c.astype("<f4").tobytes()


def hit_from_bytes(content: bytes, search: SearchTerms) -> HitTerms:
    """Read back."""
    numbers_bytes = 3 * _HIT_NUMBERS.itemsize
    before, after, trail = np.frombuffer(content[:numbers_bytes], _HIT_NUMBERS).tolist()
    novelty_c = np.frombuffer(content[numbers_bytes:], "<f4").astype(np.float32)
    return HitTerms(search, novelty_c, before, after, trail)


def hit_to_fields(terms: HitTerms) -> dict[str, Any]:
    """The numbers as JSON; novelty is a file beside."""
    neighbours = {"before": terms.before, "after": terms.after}
    found = {name: None if math.isnan(value) else value for name, value in neighbours.items()}
    return {**found, "trail": terms.trail}


def hit_from_fields(
    fields: Mapping[str, Any], search: SearchTerms, novelty_c: NDArray[Any]
) -> HitTerms:
    """Read back. Raises :class:`EvidenceInvalid`."""
    if novelty_c.shape != (search.grid.cells,):
        raise EvidenceInvalid("the novelty of a hit does not fit its grid")
    try:
        before, after = (
            math.nan if fields[name] is None else float(fields[name])
            for name in ("before", "after")
        )
        return HitTerms(search, novelty_c, before, after, float(fields["trail"]))
    except (KeyError, TypeError, ValueError) as error:
        raise EvidenceInvalid(f"what was known of a hit cannot be read: {error!r}") from None
