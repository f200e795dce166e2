"""Checks of numbers given by callers: one wording for every refused field."""

from __future__ import annotations

from typing import Any

from worker.errors import InputInvalid


def check_int(field: str, value: Any, low: int, high: int) -> int:
    """``value`` when it is an integer in ``low..high``; bools and floats are refused.

    Raises ``InputInvalid`` naming the field, its bounds and the value given.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InputInvalid(f"{field} must be an integer from {low} to {high}, got {value!r}")
    return value


def check_float(field: str, value: Any, low: float, high: float) -> float:
    """``value`` as float when it is a finite number in ``low..high``; NaN and bools are refused.

    Raises ``InputInvalid`` naming the field, its bounds and the value given.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise InputInvalid(f"{field} must be a number from {low:g} to {high:g}, got {value!r}")
    return float(value)
