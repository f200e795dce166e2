"""Matches made again from what lies in a bundle: no database, no backbone, on any machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from worker.bundle.manifest import hit_folder
from worker.bundle.terms import hit_from_fields, npy, read_npy, terms_from_files
from worker.core.rematch import SCORE_TOLERANCE, HitTerms, Rematched, rematch, same_pairs
from worker.core.types import FloatArray
from worker.errors import EvidenceInvalid, RisError
from worker.index.codec import Codec, codec_named

SEARCH_FOLDER = "search/"


@dataclass(frozen=True, slots=True, eq=False)
class StoredFrame:
    """Descriptors of a frame as they lie in the index: ``patches_cd`` (c, d) and ``global_d`` (D,)
    of the codec's type."""

    codec: Codec
    patches_cd: np.ndarray
    global_d: np.ndarray

    def decoded(self) -> tuple[FloatArray, FloatArray]:
        """The same as float32, as searches read them."""
        return self.codec.decode(self.patches_cd), self.codec.decode(self.global_d)

    def files(self, folder: str) -> dict[str, bytes]:
        """As files below a folder."""
        return {
            f"{folder}stored-patches.npy": npy(self.patches_cd),
            f"{folder}stored-global.npy": npy(self.global_d),
        }


def stored_from_files(files: Mapping[str, bytes], folder: str, codec_name: str) -> StoredFrame:
    """Read back. Raises :class:`EvidenceInvalid`."""
    try:
        codec = codec_named(codec_name)
    except RisError as error:
        raise EvidenceInvalid(str(error)) from None
    return StoredFrame(
        codec,
        read_npy(f"{folder}stored-patches.npy", files, codec.dtype.str, 2),
        read_npy(f"{folder}stored-global.npy", files, codec.dtype.str, 1),
    )


def rematch_fields(made: Rematched, record: Mapping[str, Any]) -> dict[str, Any]:
    """What matching again gave, and whether that is what was recorded."""
    pairs = [] if made.region is None else _pairs(made)
    return {
        "pairs": pairs,
        "similarity": made.similarity,
        "coverage": made.coverage,
        "score": made.score,
        "same_region": same_pairs(made.region, [(q, c) for q, c in record["pairs"]]),
        "same_score": None
        if made.score is None
        else abs(made.score - record["score"]) <= SCORE_TOLERANCE * max(1.0, abs(made.score)),
    }


def _pairs(made: Rematched) -> list[list[int]]:
    assert made.region is not None
    both = zip(made.region.query_index.tolist(), made.region.cell_index.tolist(), strict=True)
    return [list(pair) for pair in both]


@dataclass(frozen=True, slots=True)
class RematchedHit:
    """A hit of a bundle: ``told`` and ``found`` by matching again; ``terms`` and ``stored`` for who
    goes on to the picture. ``found`` is None where it was not possible, and ``why`` says why."""

    rank: int
    told: Mapping[str, Any] | None
    found: Mapping[str, Any] | None
    why: str = ""
    terms: HitTerms | None = None
    stored: StoredFrame | None = None

    @property
    def is_same(self) -> bool:
        """Whether matching again gave what the manifest says, bit for bit."""
        return self.found is not None and self.found == self.told


def rematch_hits(files: Mapping[str, bytes], manifest: Mapping[str, Any]) -> Sequence[RematchedHit]:
    """Match every hit again from the descriptors in the bundle. Raises :class:`EvidenceInvalid` for
    a manifest whose fields do not fit its files."""
    try:
        hits, codec = manifest["hits"], str(manifest["index"]["codec"])
        search = None
        if manifest["search"]["terms"] is not None:
            search = terms_from_files(manifest["search"]["terms"], files, SEARCH_FOLDER)
        found = []
        for hit in hits:
            rank, told = int(hit["rank"]), hit["rematch"]
            if told is None or search is None:
                found.append(RematchedHit(rank, None, None, str(hit["why_no_rematch"])))
                continue
            folder = hit_folder(rank)
            novelty_c = read_npy(f"{folder}novelty.npy", files, "<f4", 1)
            terms = hit_from_fields(hit["terms"], search, novelty_c)
            stored = stored_from_files(files, folder, codec)
            made = rematch_fields(rematch(terms, *stored.decoded()), hit["record"])
            found.append(RematchedHit(rank, told, made, "", terms, stored))
        return found
    except EvidenceInvalid:
        raise
    except (RisError, KeyError, TypeError, ValueError, IndexError, MemoryError) as error:
        raise EvidenceInvalid(f"the bundle's numbers do not fit together: {error!r}") from None
