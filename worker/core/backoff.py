"""When to try again: later after each failure, up to a cap, and not all at the same moment."""

from __future__ import annotations


def retry_delay_s(failures: int, base_s: float, cap_s: float, chance: float) -> float:
    """Delay after ``failures`` (from 1) in a row; ``chance`` 0..1 spreads it by half."""
    longest_s = min(cap_s, base_s * 2.0 ** min(max(0, failures - 1), 62))
    return longest_s * (0.5 + 0.5 * chance)
