"""A bundle's matches made again: from the descriptors in it, and from its pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from worker.backbones.base import Backbone
from worker.backbones.embedder import embed_masked
from worker.bundle.checking import CheckedBundle
from worker.bundle.rematching import RematchedHit, rematch_fields, rematch_hits
from worker.core.masking import PrivacyMask, areas_from_json
from worker.core.rematch import SearchTerms, rematch
from worker.core.types import Descriptors, FloatArray, ImageArray, SizePx
from worker.errors import BackboneMismatch, EvidenceInvalid, RisError
from worker.video.picture import load_query_picture

LEAST_MEAN_COSINE = 0.8
"""Of the cells of a picture, embedded anew, with what the index holds of it (docs/evidence.md says
what was measured). The index was made from decoded video and the picture is a JPEG of it, so they
are alike, not equal."""
NEARER = 0.01
"""How much nearer to a picture than its own the descriptors of another hit must be to be told."""
MAX_PICTURE_PX = 100_000_000


@dataclass(frozen=True, slots=True)
class FromPicture:
    """A hit matched again from pictures alone. Cosines are those of its cells, embedded anew, with
    the descriptors in the bundle: their mean, and the lowest."""

    mean_cosine: float
    lowest_cosine: float
    shared_cells: float
    """Share of the cells of the recorded region and of this one that both have, 0..1."""
    score: float | None
    score_difference: float | None
    nearest_rank: int
    """Hit of this bundle whose descriptors are nearest to the picture: its own, but for a swap."""


@dataclass(frozen=True, slots=True)
class HitCheck:
    """One hit: whether its match was made again bit for bit, whether it is the recorded one, and
    how near the pictures come; None: not possible, or not asked."""

    rank: int
    remade: bool | None
    is_record: bool | None
    picture: FromPicture | None
    detail: str


@dataclass(frozen=True, slots=True)
class RematchReport:
    """``problems``: what contradicts the bundle. ``hits``: by rank."""

    hits: tuple[HitCheck, ...]
    problems: tuple[str, ...]


def check_matches(
    bundle: CheckedBundle, backbone: Callable[[str], Backbone] | None
) -> RematchReport:
    """Make the matches of a bundle again; with ``backbone`` also from its pictures.

    Raises :class:`EvidenceInvalid` for a bundle whose numbers do not fit together,
    :class:`BackboneMismatch` for another backbone than the index had, and what loading one raises.
    """
    try:
        found = rematch_hits(bundle.files, bundle.manifest)
        loaded = None if backbone is None else _backbone(bundle.manifest, backbone)
        search = None if loaded is None else _search_anew(bundle, loaded, found)
        stored = {hit.rank: hit.stored.decoded()[0] for hit in found if hit.stored is not None}
        hits, problems = [], []
        for hit, told in zip(found, bundle.manifest["hits"], strict=True):
            picture = None
            if loaded is not None and search is not None and hit.terms is not None:
                picture = _from_picture(bundle, told, hit, loaded, search, stored)
            checked = _checked(hit, picture)
            hits.append(checked)
            problems += _problems(checked)
        return RematchReport(tuple(hits), tuple(problems))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EvidenceInvalid(f"the manifest's fields do not fit: {error!r}") from None


def _checked(hit: RematchedHit, picture: FromPicture | None) -> HitCheck:
    if hit.found is None:
        return HitCheck(hit.rank, None, None, picture, hit.why)
    same = bool(hit.found["same_region"]) and hit.found["same_score"] is not False
    detail = "" if same else "the descriptors are not those that the search read: stored anew since"
    if same and hit.found["score"] is None:
        detail = "region only: this score depends on other frames"
    return HitCheck(hit.rank, hit.is_same, same, picture, detail)


def _problems(hit: HitCheck) -> list[str]:
    found = []
    if hit.remade is False:
        found.append(f"hit {hit.rank}: matching again does not give what the manifest says")
    if hit.picture is not None and hit.picture.nearest_rank != hit.rank:
        found.append(
            f"hit {hit.rank}: its picture is nearer to the descriptors of hit"
            f" {hit.picture.nearest_rank} than to its own"
        )
    if hit.picture is not None and hit.picture.mean_cosine < LEAST_MEAN_COSINE:
        found.append(
            f"hit {hit.rank}: its descriptors are not those of its picture (mean cosine"
            f" {hit.picture.mean_cosine:.3f}, at least {LEAST_MEAN_COSINE})"
        )
    return found


def _backbone(manifest: Mapping[str, Any], load: Callable[[str], Backbone]) -> Backbone:
    index = manifest["index"]
    backbone = load(str(index["backbone"]))
    if backbone.spec.spec_hash != index["spec_hash"]:
        raise BackboneMismatch(
            f"backbone {index['backbone']!r} here has spec {backbone.spec.spec_hash[:12]}, the"
            f" bundle was made with {str(index['spec_hash'])[:12]}: give it those weights, or check"
            " without --rematch"
        )
    return backbone


def _embedded(
    bundle: CheckedBundle, backbone: Backbone, picture: str, frame: Mapping[str, Any] | None
) -> Descriptors:
    """Descriptors of a picture of the bundle, one at a time: (1, ...)."""
    try:
        img_hwc: ImageArray = load_query_picture(bundle.files[picture], MAX_PICTURE_PX)
    except RisError as error:
        raise EvidenceInvalid(f"{picture}: {error}") from None
    painted = None if frame is None else frame["privacy_mask"]
    mask = None
    if painted is not None:
        mask = PrivacyMask(int(painted["mask_id"]), areas_from_json(painted["areas"]))
    return embed_masked(backbone, [img_hwc], [mask], [SizePx(*img_hwc.shape[:2])], 1)


def _search_anew(
    bundle: CheckedBundle, backbone: Backbone, found: Sequence[RematchedHit]
) -> SearchTerms | None:
    """What the search knew, with the query's descriptors made anew from its picture."""
    terms = next((hit.terms.search for hit in found if hit.terms is not None), None)
    if terms is None:
        return None
    query = bundle.manifest["query"]
    made = _embedded(bundle, backbone, query["picture"], query["frame"])
    at = terms.cells[:, 0] * terms.grid.w + terms.cells[:, 1]
    return replace(terms, patches_qd=np.ascontiguousarray(made.patches_ncd[0][at]))


def _from_picture(
    bundle: CheckedBundle,
    told: Mapping[str, Any],
    hit: RematchedHit,
    backbone: Backbone,
    search: SearchTerms,
    stored: Mapping[int, FloatArray],
) -> FromPicture:
    assert hit.terms is not None
    assert hit.stored is not None
    made = _embedded(bundle, backbone, told["picture"], told["frame"])
    codec = hit.stored.codec
    patches_cd = codec.decode(codec.encode(made.patches_ncd[0]))
    global_d = codec.decode(codec.encode(made.global_nd[0]))
    cosine_c = _row_cosines(patches_cd, stored[hit.rank])
    record = told["record"]
    again = rematch(replace(hit.terms, search=search), patches_cd, global_d)
    fields = rematch_fields(again, record)
    cells, recorded = ({cell for _, cell in one["pairs"]} for one in (fields, record))
    score = again.score
    return FromPicture(
        float(cosine_c.mean(dtype=np.float64)),
        float(cosine_c.min()),
        len(cells & recorded) / max(1, len(cells | recorded)),
        score,
        None if score is None else score - float(record["score"]),
        _nearest(hit.rank, patches_cd, stored),
    )


def _nearest(rank: int, patches_cd: FloatArray, stored: Mapping[int, FloatArray]) -> int:
    """The hit itself, unless the descriptors of another are nearer by more than ``NEARER``."""
    cosine = {one: float(_row_cosines(patches_cd, cd).mean()) for one, cd in stored.items()}
    best = max(cosine, key=lambda one: cosine[one])
    return best if cosine[best] > cosine[rank] + NEARER else rank


def _row_cosines(a_cd: FloatArray, b_cd: FloatArray) -> FloatArray:
    if a_cd.shape != b_cd.shape:
        raise EvidenceInvalid("descriptors in the bundle do not fit its backbone")
    cosine_c: FloatArray = (a_cd * b_cd).sum(axis=1, dtype=np.float64).astype(np.float32)
    return cosine_c
