"""Shadow comparison of two index generations: its figures, and what speaks against a switch.

Two kinds of questions are put to the live generation and to the new one. Queries that people asked
show how far answers change; that they change is no fault. Canaries have a known answer: a box on an
indexed frame must find that frame, and should find the frames just before and after it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any, Literal

from worker.core.bounds import check_float, check_int

TOP_K = 10
"""Frames compared per query, and in which a canary's neighbours are looked for."""
MAX_QUERIES = 1000
_ROUNDING = 1e-9

Outcome = Literal["planned", "compared", "skipped", "failing"]


@dataclass(frozen=True, slots=True)
class Gate:
    """What refuses a switch beside failing queries: self recall lower than the live one's by more
    than ``recall_margin``, and a mean overlap below ``min_overlap``; None: however low."""

    recall_margin: float = 0.05
    min_overlap: float | None = None

    def __post_init__(self) -> None:
        check_float("recall_margin", self.recall_margin, 0.0, 1.0)
        if self.min_overlap is not None:
            check_float("min_overlap", self.min_overlap, 0.0, 1.0)


DEFAULT_GATE = Gate()


@dataclass(frozen=True, slots=True)
class ShadowOptions:
    """What a job was told to compare. ``queries``: recent ones to ask again, at most."""

    queries: int
    gate: Gate = DEFAULT_GATE

    def __post_init__(self) -> None:
        check_int("queries", self.queries, 1, MAX_QUERIES)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON object; :func:`options_from_json` reads it back."""
        return {"queries": self.queries, **asdict(self.gate)}


def options_from_json(given: Mapping[str, Any] | None) -> ShadowOptions | None:
    """The options of a job; None, also of jobs of older versions: it compares nothing."""
    if given is None:
        return None
    return ShadowOptions(given["queries"], Gate(given["recall_margin"], given["min_overlap"]))


@dataclass(frozen=True, slots=True)
class ComparedQuery:
    """One query. ``overlap`` and ``agreement`` are None where the live one has no hits or, for the
    latter, fewer than two are shared. ``detail``: why it was skipped, or how it fails."""

    query_id: str
    outcome: Outcome = "planned"
    live_hits: int = 0
    new_hits: int = 0
    overlap: float | None = None
    agreement: float | None = None
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class Canary:
    """One frame that is searched for. ``neighbours``: frames just before and after it, of which
    ``*_neighbours`` were found. ``live_self`` is None where the live one could not be asked."""

    frame_id: int
    outcome: Outcome = "planned"
    neighbours: int = 0
    live_self: bool | None = None
    live_neighbours: int = 0
    new_self: bool = False
    new_neighbours: int = 0


@dataclass(frozen=True, slots=True)
class Figures:
    """A comparison in numbers; shares are 0..1, None where nothing could be counted."""

    queries: int
    queries_skipped: int
    queries_failing: int
    overlap_mean: float | None
    overlap_worst: float | None
    agreement_mean: float | None
    canaries: int
    canaries_skipped: int
    live_self_recall: float | None
    new_self_recall: float | None
    live_neighbour_recall: float | None
    new_neighbour_recall: float | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """A comparison as far as it is. ``refused``: reasons not to switch, once nothing is planned."""

    job_id: str
    live_id: int
    queries: tuple[ComparedQuery, ...]
    canaries: tuple[Canary, ...]
    refused: tuple[str, ...] = ()

    @property
    def planned(self) -> int:
        """How many questions were not put yet."""
        queries = sum(one.outcome == "planned" for one in self.queries)
        return queries + sum(one.outcome == "planned" for one in self.canaries)

    def with_query(self, done: ComparedQuery) -> Comparison:
        """With one query compared."""
        same = done.query_id
        return replace(
            self, queries=tuple(done if one.query_id == same else one for one in self.queries)
        )

    def with_canary(self, done: Canary) -> Comparison:
        """With one canary asked."""
        same = done.frame_id
        return replace(
            self, canaries=tuple(done if one.frame_id == same else one for one in self.canaries)
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON object with the figures; :func:`comparison_from_json` reads it back."""
        return {**asdict(self), "figures": asdict(figures(self))}


def comparison_from_json(given: Mapping[str, Any]) -> Comparison:
    """A stored comparison."""
    return Comparison(
        given["job_id"],
        given["live_id"],
        tuple(ComparedQuery(**one) for one in given["queries"]),
        tuple(Canary(**one) for one in given["canaries"]),
        tuple(given["refused"]),
    )


def overlap(live: Sequence[int], new: Sequence[int]) -> float | None:
    """Share of frames that both answers have, of the longer one; None when the live is empty."""
    if not live:
        return None
    return len(set(live) & set(new)) / max(len(live), len(new))


def agreement(live: Sequence[int], new: Sequence[int]) -> float | None:
    """Share of pairs of shared frames that both answers rank in the same order, 0..1."""
    place = {frame_id: at for at, frame_id in enumerate(new)}
    shared = [place[frame_id] for frame_id in live if frame_id in place]
    if len(shared) < 2:
        return None
    pairs = list(combinations(shared, 2))
    return sum(first < second for first, second in pairs) / len(pairs)


def figures(comparison: Comparison) -> Figures:
    """Sum a comparison up. Both recalls count the canaries that both generations were asked; the
    new one's counts all of them where the live one could not be asked at all."""
    compared = [one for one in comparison.queries if one.outcome == "compared"]
    overlaps = [one.overlap for one in compared if one.overlap is not None]
    asked = [one for one in comparison.canaries if one.outcome == "compared"]
    both = [one for one in asked if one.live_self is not None]
    counted = both or asked
    neighbours = sum(one.neighbours for one in counted)
    return Figures(
        queries=len(compared),
        queries_skipped=sum(one.outcome == "skipped" for one in comparison.queries),
        queries_failing=sum(one.outcome == "failing" for one in comparison.queries),
        overlap_mean=_mean(overlaps),
        overlap_worst=min(overlaps, default=None),
        agreement_mean=_mean([one.agreement for one in compared if one.agreement is not None]),
        canaries=len(asked),
        canaries_skipped=sum(one.outcome == "skipped" for one in comparison.canaries),
        live_self_recall=_mean([bool(one.live_self) for one in both]),
        new_self_recall=_mean([one.new_self for one in counted]),
        live_neighbour_recall=_share(sum(one.live_neighbours for one in both), neighbours, both),
        new_neighbour_recall=_share(sum(one.new_neighbours for one in counted), neighbours, True),
    )


def refusals(comparison: Comparison, gate: Gate) -> tuple[str, ...]:
    """What speaks against the switch, in words; empty: nothing does."""
    found = figures(comparison)
    reasons = []
    live, new = found.live_self_recall, found.new_self_recall
    if live is not None and new is not None and new < live - gate.recall_margin - _ROUNDING:
        reasons.append(
            f"{new:.2f} of {found.canaries} canary frames find themselves, {live:.2f} in the live"
            f" generation (margin {gate.recall_margin:g})"
        )
    failing = [one for one in comparison.queries if one.outcome == "failing"]
    if failing:
        named = ", ".join(f"{one.query_id} ({one.detail})" for one in failing[:3])
        more = f" and {len(failing) - 3} more" if len(failing) > 3 else ""
        reasons.append(
            f"{len(failing)} queries fail that the live generation answers: {named}{more}"
        )
    low, least = found.overlap_mean, gate.min_overlap
    if low is not None and least is not None and low < least - _ROUNDING:
        reasons.append(f"mean overlap {low:.2f} is below --min-overlap {least:g}")
    return tuple(reasons)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _share(part: int, whole: int, asked: object) -> float | None:
    return part / whole if whole and asked else None
