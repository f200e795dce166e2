"""Names that people give: of cameras, keys."""

from __future__ import annotations

from unicodedata import category

from worker.errors import InputInvalid

MAX_LETTERS = 200


def checked_name(what: str, given: str) -> str:
    """The name without blanks around it. Raises :class:`InputInvalid` for an empty or overlong
    one, and for control characters."""
    name = given.strip()
    if not 1 <= len(name) <= MAX_LETTERS or any(
        category(letter) in ("Cc", "Cs") for letter in name
    ):
        raise InputInvalid(f"{what} {given[:80]!r}: use 1 to {MAX_LETTERS} characters, no controls")
    return name
