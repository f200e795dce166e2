"""How commands speak: tables and progress for people, one JSON object for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from worker.errors import InputInvalid

# A pipe has no width of its own: wide enough that no table breaks its words.
_WIDTH = None if sys.stdout.isatty() else 150

console = Console(highlight=False, width=_WIDTH)
"""Results, on standard output."""

notes = Console(highlight=False, stderr=True)
"""Progress and notes, on standard error, so that output can be piped."""

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]


_NEVER_WRAPPED = ("time", "from", "to", "coverage")


def emit_json(fields: Any) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(json.dumps(fields, default=str, indent=2) + "\n")


def table(title: str | None, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table; numbers to the right."""
    drawn = Table(title=title, title_justify="left", title_style="bold")
    for at, column in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[at], int | float) for row in rows)
        drawn.add_column(
            column,
            justify="right" if numeric else "left",
            overflow="fold",
            no_wrap=numeric or column in _NEVER_WRAPPED,
        )
    for row in rows:
        drawn.add_row(*("" if value is None else str(value) for value in row))
    console.print(drawn)


def parse_time(option: str, text: str | None) -> datetime | None:
    """An option's ISO 8601 time. Raises :class:`InputInvalid`."""
    if text is None:
        return None
    try:
        return datetime.fromisoformat(text)
    except ValueError as error:
        raise InputInvalid(
            f"{option} {text!r} is not ISO 8601: write e.g. 2026-05-01T08:00:00+00:00"
        ) from error


def when(t_utc: datetime | None) -> str:
    """A time as people read it, UTC, with tenths of a second."""
    return "" if t_utc is None else t_utc.strftime("%Y-%m-%d %H:%M:%S.%f")[:-5] + "Z"


def size(byte_count: int | None) -> str:
    """Bytes as people read them."""
    if byte_count is None:
        return "unknown"
    for unit in ("B", "kB", "MB", "GB"):
        if byte_count < 1000:
            return f"{byte_count:.0f} {unit}"
        byte_count = round(byte_count / 1000)
    return f"{byte_count} TB"
