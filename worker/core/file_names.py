"""What the name of a recording says: when it begins, and of which camera it is."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo

from worker.errors import InputInvalid

_CODES = {
    "Y": r"\d{4}", "y": r"\d{2}", "m": r"\d{2}", "d": r"\d{2}", "H": r"\d{2}", "M": r"\d{2}",
    "S": r"\d{2}", "f": r"\d{1,6}", "s": r"\d{9,11}",
}  # fmt: skip
_TOKEN = re.compile(r"%(.)|\{camera\}|\*|[^%{*]+|.", re.DOTALL)
_MOST_LETTERS = 300


@dataclass(frozen=True, slots=True)
class Named:
    """``start``: without a zone, unless the name counts seconds since 1970. ``camera``: None where
    the pattern names none."""

    start: datetime
    camera: str | None


@dataclass(frozen=True, slots=True)
class NamePattern:
    """A pattern of relative paths, with ``/`` between folders: codes of strptime (%Y %m %d %H %M %S
    %f, or %s for seconds since 1970), ``{camera}``, and ``*`` for anything inside one name. One
    without ``/`` is of the file's own name, in whatever folder it lies."""

    text: str
    expression: re.Pattern[str] = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> NamePattern:
        """Raises :class:`InputInvalid`."""
        if len(text) > _MOST_LETTERS:
            raise InputInvalid(f"the name pattern has over {_MOST_LETTERS} letters")
        seen: set[str] = set()
        parts = [_expression(token, text, seen) for token in _TOKEN.finditer(text)]
        if "s" not in seen and not ({"m", "d"} <= seen and seen & {"Y", "y"}):
            raise InputInvalid(
                f"name pattern {text!r} has no date: write e.g. %Y-%m-%d/%H/{{camera}}/%M.%S.mp4"
            )
        return cls(text, re.compile("".join(parts)))

    @property
    def names_camera(self) -> bool:
        """Whether names tell the camera."""
        return "{camera}" in self.text

    def read(self, relative_path: str) -> Named | None:
        """What a path says; None where it is none of this pattern, or no date."""
        given = relative_path if "/" in self.text else relative_path.rpartition("/")[2]
        found = self.expression.fullmatch(given)
        if found is None:
            return None
        groups = found.groupdict()
        camera = groups.pop("camera", None)
        try:
            if "s" in groups:
                return Named(datetime.fromtimestamp(int(groups["s"]), UTC), camera)
            codes = " ".join(f"%{code}" for code in groups)
            return Named(datetime.strptime(" ".join(groups.values()), codes), camera)  # noqa: DTZ007
        except (ValueError, OverflowError):
            return None


def _expression(token: re.Match[str], text: str, seen: set[str]) -> str:
    code, whole = token.group(1), token.group(0)
    if whole == "*":
        return "[^/]*"
    name = "camera" if whole == "{camera}" else code
    if name is None:
        if whole == "%":
            raise InputInvalid(f"name pattern {text!r}: write a % as %%")
        if whole == "{":
            raise InputInvalid(
                f"name pattern {text!r}: of names in braces only {{camera}} is known"
            )
        return re.escape(whole)
    if name == "%":
        return "%"
    if name != "camera" and name not in _CODES:
        raise InputInvalid(f"name pattern {text!r}: %{name} is not known, use {' '.join(_CODES)}")
    if name in seen:  # the same time, or camera, once more
        return f"(?P={name})"
    seen.add(name)
    return f"(?P<{name}>{_CODES.get(name, '[^/]+?')})"


def in_zone(start: datetime, zone: tzinfo) -> datetime:
    """A time of a name in UTC. Of an hour that comes twice in autumn, the first."""
    return (start if start.tzinfo is not None else start.replace(tzinfo=zone)).astimezone(UTC)
