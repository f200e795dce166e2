"""A disk that loses what was not synced: a model of power loss under a real folder.

Files are written for real. What was synced is remembered: the content of a file at its last fsync,
the entries of a folder at its. After a power cut the folder is made anew: each entry that was not
synced is there or not, each page of a file is the synced one or a later one, by chance. A disk may
do all of that; it may not lose what was synced.
"""

from __future__ import annotations

import os
import random
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PAGE = 512
"""Smaller than a real page: more ways to tear a small file."""


class PowerCut(BaseException):
    """The machine went off. Nothing catches it: no handler runs on a machine that is off."""


class CrashDisk:
    """The disk under ``root``, which is empty at first."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root = root
        self.chance = random.Random(seed)
        self.cuts = 0
        self._content: dict[int, bytes] = {}
        self._entries: dict[int, dict[str, int]] = {}
        self._kept: dict[int, int] = {}
        self._left: int | None = None
        root.mkdir()
        self._forget()

    def close(self) -> None:
        """Let go of the files under it."""
        for descriptor in self._kept.values():
            _close(descriptor)
        self._kept = {}

    def _forget(self) -> None:
        self.close()
        self._content, self._entries = {}, {}
        for path in (self.root, *self.root.rglob("*")):
            self._synced(path)

    def _synced(self, path: Path) -> None:
        number = path.stat().st_ino
        if path.is_dir():
            self._entries[number] = {name.name: name.inode() for name in os.scandir(path)}
        else:
            self._content[number] = path.read_bytes()
        if number not in self._kept:  # an open file keeps its number from being given again
            self._kept[number] = _open(path, os.O_RDONLY)

    @contextmanager
    def watched(self, steps: int | None = None) -> Iterator[None]:
        """Syncs are remembered meanwhile; the power fails at the ``steps``-th write or sync."""
        self._left = steps
        names = ("fsync", "pwrite", "sync", "replace", "rename")
        saved = {name: getattr(os, name) for name in names}
        os.fsync = self._watch(saved["fsync"], self._on_fsync)
        os.sync = self._watch(saved["sync"], self._on_sync)
        for name in ("pwrite", "replace", "rename"):
            setattr(os, name, self._watch(saved[name], lambda *_: None))
        try:
            yield
        finally:
            for name, function in saved.items():
                setattr(os, name, function)

    def _watch(self, call: Callable[..., Any], after: Callable[..., None]) -> Callable[..., Any]:
        def watched(*given: Any, **named: Any) -> Any:
            if self._left is not None:
                self._left -= 1
                if self._left < 0:
                    raise PowerCut
            result = call(*given, **named)
            after(*given)
            return result

        return watched

    def _on_fsync(self, descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if path.is_relative_to(self.root) and path.exists():
            self._synced(path)

    def _on_sync(self) -> None:
        for path in (self.root, *self.root.rglob("*")):
            self._synced(path)

    def cut_power(self) -> None:
        """Everything is as a disk may leave it; then the machine is on again."""
        self.cuts += 1
        made = self._after(self.root, self.root.stat().st_ino)
        shutil.rmtree(self.root)
        _build(self.root, made)
        self._forget()

    def _after(self, folder: Path | None, number: int) -> dict[str, Any]:
        """What a folder holds now: names to bytes, or to folders."""
        now = {} if folder is None else {e.name: e.inode() for e in os.scandir(folder)}
        synced = self._entries.get(number, {})
        made: dict[str, Any] = {}
        for name in sorted({*now, *synced}):
            entry = self.chance.choice((now.get(name), synced.get(name)))
            if entry is None:
                continue
            path = folder / name if folder is not None and now.get(name) == entry else None
            made[name] = self._one(path, entry)
        return made

    def _one(self, path: Path | None, number: int) -> Any:
        if number in self._kept:
            is_folder = stat.S_ISDIR(os.fstat(self._kept[number]).st_mode)
        else:
            is_folder = path is not None and path.is_dir()
        if is_folder:
            return self._after(path, number)
        synced = self._content.get(number, b"")
        return self._torn(synced, path.read_bytes() if path is not None else synced)

    def _torn(self, synced: bytes, written: bytes) -> bytes:
        size = self.chance.choice((len(synced), len(written)))
        made = bytearray(size)
        for start in range(0, size, PAGE):
            source = self.chance.choice((synced, written))
            part = source[start : min(start + PAGE, size)]
            made[start : start + len(part)] = part
        return bytes(made)


# As they are without a disk that watches.
_open, _close = os.open, os.close


def _build(folder: Path, made: dict[str, Any]) -> None:
    folder.mkdir()
    for name, entry in made.items():
        if isinstance(entry, dict):
            _build(folder / name, entry)
        else:
            (folder / name).write_bytes(entry)
