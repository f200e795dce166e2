"""Sampling policies: which decoded frames of a video segment are indexed (pure decisions).

Times are ``t_s``, seconds since the start of the stream. A sampler that resumes after an
interruption is told the time of the last frame kept; it then decides as if it had never stopped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np

from worker.core.bounds import check_float
from worker.core.types import FloatArray
from worker.errors import InputInvalid

TIME_SLACK_S = 1e-6
"""Times come from integer ticks times a time base: 3 x 0.1 is not 0.3. One microsecond is above
that rounding and below the spacing of any two frames."""

MAX_GAP_S = 86_400.0


@dataclass(frozen=True, slots=True)
class IntervalPolicy:
    """The first decoded frame at or after each multiple of ``every_s`` (0.001..86400 s)."""

    every_s: float

    def __post_init__(self) -> None:
        check_float("every_s", self.every_s, 0.001, MAX_GAP_S)


@dataclass(frozen=True, slots=True)
class KeyframePolicy:
    """Every keyframe, but none sooner than ``min_gap_s`` (0..86400 s) after the last one kept."""

    min_gap_s: float = 0.0

    def __post_init__(self) -> None:
        check_float("min_gap_s", self.min_gap_s, 0.0, MAX_GAP_S)


@dataclass(frozen=True, slots=True)
class ChangePolicy:
    """A frame whose grey picture differs anywhere from the last kept one (:func:`is_changed`).

    Kept when it does by more than ``level`` (grey levels, 0..255), or ``max_gap_s``
    (0.001..86400 s) after the last one kept; never sooner than ``min_gap_s`` (0..max_gap_s).
    """

    level: float
    max_gap_s: float = 60.0
    min_gap_s: float = 0.0

    def __post_init__(self) -> None:
        check_float("level", self.level, 0.0, 255.0)
        check_float("max_gap_s", self.max_gap_s, 0.001, MAX_GAP_S)
        check_float("min_gap_s", self.min_gap_s, 0.0, self.max_gap_s)


SamplingPolicy = IntervalPolicy | KeyframePolicy | ChangePolicy

_POLICIES: dict[str, type[IntervalPolicy] | type[KeyframePolicy] | type[ChangePolicy]] = {
    "interval": IntervalPolicy,
    "keyframe": KeyframePolicy,
    "change": ChangePolicy,
}


def policy_to_json(policy: SamplingPolicy) -> dict[str, Any]:
    """Plain JSON object with ``kind``; :func:`policy_from_json` reads it back."""
    kind = next(kind for kind, made in _POLICIES.items() if made is type(policy))
    return {"kind": kind} | {
        field.name: float(getattr(policy, field.name)) for field in fields(policy)
    }


def policy_from_json(given: Mapping[str, Any]) -> SamplingPolicy:
    """Policy from a JSON object. Raises ``InputInvalid`` for unknown, missing or bad fields."""
    kind = given.get("kind")
    policy = _POLICIES.get(kind) if isinstance(kind, str) else None
    if policy is None:
        raise InputInvalid(f"sampling kind must be one of {', '.join(_POLICIES)}, got {kind!r}")
    values = {name: value for name, value in given.items() if name != "kind"}
    known = {field.name for field in fields(policy)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise InputInvalid(
            f"unknown fields {unknown} of sampling {kind}; known are {sorted(known)}"
        )
    try:
        return policy(**values)
    except TypeError as error:
        raise InputInvalid(f"sampling {kind} lacks a field: {error}") from None


def policy_named(name: str, every_s: float) -> SamplingPolicy:
    """The policy that people ask for by name, a frame every so often.

    Raises ``InputInvalid``.
    """
    if name == "interval":
        return IntervalPolicy(every_s)
    if name == "keyframe":
        return KeyframePolicy(min_gap_s=every_s)
    if name == "change":
        return ChangePolicy(level=4.0, max_gap_s=max(60.0, every_s), min_gap_s=every_s)
    raise InputInvalid(f"policy {name!r} is unknown: use interval, keyframe or change")


def policy_key(policy: SamplingPolicy) -> str:
    """Stable text of a policy, equal for equal policies: ``interval(every_s=1.0)``."""
    values = policy_to_json(policy)
    kind = values.pop("kind")
    return f"{kind}({', '.join(f'{name}={values[name]!r}' for name in sorted(values))})"


class Sampler(Protocol):
    """Decides frame by frame, in presentation order, and remembers what it kept."""

    def keep(self, t_s: float, keyframe: bool = False, gray_hw: FloatArray | None = None) -> bool:
        """Whether to keep the decoded frame at ``t_s``.

        ``gray_hw``: float32 (h, w), a small grey picture, 0..255; needed by ``change`` only.
        Frames at or before the last kept one are dropped. Raises ``InputInvalid`` for a time that
        is not finite and for a missing or damaged grey picture.
        """
        ...

    def next_s(self) -> float:
        """No frame before this time is kept, or needed to decide on later ones."""
        ...


def sampler(policy: SamplingPolicy, resume_after_s: float | None = None) -> Sampler:
    """A fresh sampler of one stream.

    ``resume_after_s``: time of the last frame kept before an interruption (for ``interval``, of
    any frame decided since will do); None at the start of the stream. A resumed ``change`` sampler
    needs that frame's picture again: pass the frame to ``keep`` once more (it answers False and
    takes it as reference); without it the next frame allowed by ``min_gap_s`` is kept.
    """
    if resume_after_s is not None:
        _check_time(resume_after_s)
    match policy:
        case IntervalPolicy():
            return _IntervalSampler(policy, resume_after_s)
        case KeyframePolicy():
            return _KeyframeSampler(policy, resume_after_s)
        case ChangePolicy():
            return _ChangeSampler(policy, resume_after_s)


class _IntervalSampler:
    def __init__(self, policy: IntervalPolicy, resume_after_s: float | None) -> None:
        self._every_s = policy.every_s
        # Slot -1 precedes the stream: its first frame at or after 0 s opens a new slot.
        self._last_slot = -1 if resume_after_s is None else self._slot(resume_after_s)

    def _slot(self, t_s: float) -> int:
        return math.floor((t_s + TIME_SLACK_S) / self._every_s)

    def keep(self, t_s: float, keyframe: bool = False, gray_hw: FloatArray | None = None) -> bool:
        _check_time(t_s)
        slot = self._slot(t_s)
        if slot <= self._last_slot:
            return False
        self._last_slot = slot
        return True

    def next_s(self) -> float:
        return (self._last_slot + 1) * self._every_s


class _KeyframeSampler:
    def __init__(self, policy: KeyframePolicy, resume_after_s: float | None) -> None:
        self._min_gap_s = policy.min_gap_s
        self._last_kept_s = -math.inf if resume_after_s is None else resume_after_s

    def keep(self, t_s: float, keyframe: bool = False, gray_hw: FloatArray | None = None) -> bool:
        _check_time(t_s)
        if not keyframe or not _is_later(t_s - self._last_kept_s, self._min_gap_s):
            return False
        self._last_kept_s = t_s
        return True

    def next_s(self) -> float:
        return self._last_kept_s + self._min_gap_s


class _ChangeSampler:
    def __init__(self, policy: ChangePolicy, resume_after_s: float | None) -> None:
        self._policy = policy
        self._last_kept_s = -math.inf if resume_after_s is None else resume_after_s
        self._reference_hw: FloatArray | None = None

    def keep(self, t_s: float, keyframe: bool = False, gray_hw: FloatArray | None = None) -> bool:
        _check_time(t_s)
        if gray_hw is None or not np.isfinite(gray_hw).all():
            raise InputInvalid(f"sampling change needs a finite grey picture at {t_s} s")
        gap_s = t_s - self._last_kept_s
        if self._reference_hw is None and abs(gap_s) <= TIME_SLACK_S:
            self._reference_hw = gray_hw.copy()
        if not _is_later(gap_s, self._policy.min_gap_s):
            return False
        if gap_s < self._policy.max_gap_s - TIME_SLACK_S and not self._changed(gray_hw):
            return False
        self._last_kept_s = t_s
        self._reference_hw = gray_hw.copy()
        return True

    def next_s(self) -> float:
        # Resumed, it has to see the last kept one again.
        seen = self._reference_hw is not None
        return self._last_kept_s + (self._policy.min_gap_s if seen else 0.0)

    def _changed(self, gray_hw: FloatArray) -> bool:
        reference_hw = self._reference_hw
        if reference_hw is None or reference_hw.shape != gray_hw.shape:
            return True
        return is_changed(gray_hw, reference_hw, self._policy.level)


def is_changed(gray_hw: FloatArray, reference_hw: FloatArray, level: float) -> bool:
    """Whether two small grey pictures of one camera, float32 (h, w), show something else anywhere.

    A place has changed when it differs by more than ``level`` and more than six times what the
    picture's places usually do (the noise of this camera: what moves is small), once the shift of
    the light that all have in common is taken off. Light that shifts by more than four levels is a
    change too, and so is a picture most of which is different.
    """
    difference_hw = gray_hw.astype(np.float64) - reference_hw
    shift = float(np.median(difference_hw))
    rest_hw = np.abs(difference_hw - shift)
    noise = 1.4826 * float(np.median(rest_hw))  # of a normal one: its standard deviation
    everywhere = max(noise, abs(shift)) > 4 * level
    return everywhere or bool(rest_hw.max() > max(level, _NOISES * noise))


_NOISES = 6.0


def _is_later(gap_s: float, min_gap_s: float) -> bool:
    return gap_s > TIME_SLACK_S and gap_s >= min_gap_s - TIME_SLACK_S


def _check_time(t_s: float) -> None:
    if not math.isfinite(t_s):
        raise InputInvalid(f"frame time must be finite seconds since the stream's start, got {t_s}")
