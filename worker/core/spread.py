"""Which members of an archive lie with which group: even, and mostly where they were."""

from __future__ import annotations

from collections.abc import Mapping

from worker.errors import InputInvalid

SPARE = 0.1
"""How much more than its even share a group may get, so that few members move."""
_MULTIPLIER = 0x9E3779B97F4A7C15
_BITS = 64


def spread(weights: Mapping[int, int], groups: int) -> list[list[int]]:
    """Members (ids with their weights) in ``groups`` lists, each in order of id.

    A member has an order of preference of the groups that hangs on its id alone (rendezvous
    hashing) and goes to the first that has room: at most ``SPARE`` above the even share, or the
    emptiest where none has. So another member, or one that grew, moves few of the others. Raises
    :class:`InputInvalid` for no groups.
    """
    if groups < 1:
        raise InputInvalid(f"members cannot be spread over {groups} groups")
    room = (1 + SPARE) * sum(weights.values()) / groups
    held = [0] * groups
    members: list[list[int]] = [[] for _ in range(groups)]
    for member in sorted(weights):
        wished = sorted(range(groups), key=lambda group: _mixed(member, group), reverse=True)
        fitting = [group for group in wished if held[group] + weights[member] <= room]
        group = fitting[0] if fitting else min(wished, key=lambda one: held[one])
        members[group].append(member)
        held[group] += weights[member]
    return members


def _mixed(member: int, group: int) -> int:
    """A number that looks random and is the same in every process (splitmix64)."""
    mask = (1 << _BITS) - 1
    mixed = (member * _MULTIPLIER + (group + 1) * 0xD1B54A32D192ED03) & mask
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & mask
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & mask
    return mixed ^ (mixed >> 31)
