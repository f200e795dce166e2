"""Folders as recorders lay them out: which files are recordings, whose, and of when."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final
from zoneinfo import ZoneInfo

import structlog

from models.repositories.watching import FileState
from worker.accepting.names import checked_name
from worker.core.file_names import NamePattern, in_zone
from worker.errors import InputInvalid

log = structlog.get_logger()

SUFFIXES: Final = frozenset(
    {
        *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".m2ts", ".mts", ".mpg", ".mpeg"),
        *(
            ".flv",
            ".dav",
            ".h264",
            ".264",
            ".h265",
            ".265",
            ".hevc",
            ".3gp",
            ".asf",
            ".wmv",
            ".mxf",
        ),
    }
)


@dataclass(frozen=True, slots=True)
class NameRules:
    """What is made of a file's place: its camera and its start.

    ``camera`` None: the pattern's, or else the name of the first folder.
    """

    camera: str | None
    pattern: NamePattern | None
    zone: ZoneInfo

    def read(self, relative: str) -> tuple[str, datetime | None]:
        """Camera and start of a file; no start: the file's own. Raises :class:`InputInvalid`."""
        named = None if self.pattern is None else self.pattern.read(relative)
        if self.pattern is not None and named is None:
            raise InputInvalid(f"{relative} is not named as {self.pattern.text!r} says")
        camera = self.camera or (named.camera if named is not None else None)
        if camera is None:
            camera, below, _ = relative.partition("/")
            if not below:
                raise InputInvalid(f"{relative} lies in no folder of a camera: move it into one")
        start = None if named is None else in_zone(named.start, self.zone)
        return checked_name("camera name", camera), start


def name_rules(
    camera: str | None, from_folder: bool, pattern: str | None, time_zone: str
) -> NameRules:
    """Rules as people give them. Raises :class:`InputInvalid`."""
    parsed = None if pattern is None else NamePattern.parse(pattern)
    by_name = parsed is not None and parsed.names_camera
    if (camera is not None) + from_folder + by_name != 1:
        raise InputInvalid(
            "say whose recordings these are, in one way: --camera NAME, --camera-from-folder, or"
            " {camera} in --name"
        )
    try:
        zone = ZoneInfo(time_zone)
    except (ValueError, OSError, KeyError) as error:
        raise InputInvalid(
            f"time zone {time_zone!r} is not known: write e.g. Europe/Berlin or UTC"
        ) from error
    return NameRules(None if camera is None else checked_name("camera name", camera), parsed, zone)


def recordings_below(folder: Path) -> Iterator[tuple[str, FileState]]:
    """Recordings below a folder by their relative path, with size and modification time; links and
    hidden names are left out. Raises ``OSError`` where the folder itself cannot be read."""
    waiting = [(folder, "")]
    while waiting:
        place, prefix = waiting.pop()
        try:
            entries = sorted(os.scandir(place), key=lambda entry: entry.name)
        except OSError as error:
            if place == folder:
                raise
            log.warning("folder_not_read", folder=str(place), detail=str(error))
            continue
        for entry in entries:
            name = prefix + entry.name
            if entry.name.startswith(".") or not name.isprintable():
                continue
            if entry.is_dir(follow_symlinks=False):
                waiting.append((place / entry.name, f"{name}/"))
            elif Path(entry.name).suffix.lower() in SUFFIXES:
                state = _state(entry)
                if state is not None:
                    yield name, state


def _state(entry: os.DirEntry[str]) -> FileState | None:
    try:
        found = entry.stat(follow_symlinks=False)
    except OSError:  # gone meanwhile
        return None
    if not entry.is_file(follow_symlinks=False):
        return None
    return found.st_size, found.st_mtime_ns
