"""Shares of an accelerator's memory, so that processes beside each other do not starve.

A claim is a locked file: the system lets go of it with its process, however that ends.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from worker.errors import DeviceFailed, StorageFailed

_SLACK = 1e-6


@dataclass(frozen=True, slots=True)
class DeviceClaim:
    """This process's share of a device; kept until :meth:`release`, or the process ends."""

    path: Path
    share: float
    _file: IO[str]

    def release(self) -> None:
        """Let others have it."""
        self.path.unlink(missing_ok=True)
        self._file.close()


def claim_device(folder: Path, device: str, share: float) -> DeviceClaim:
    """Claim ``share`` (0 to 1] of ``device``, whatever names it, among processes of one folder.

    Raises ``DeviceFailed`` where what is claimed already leaves less than that, and
    ``StorageFailed`` where the folder cannot be written.
    """
    place = folder / hashlib.sha256(device.encode()).hexdigest()[:16]
    try:
        place.mkdir(parents=True, exist_ok=True)
        with (place / "lock").open("a") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)
            others = _claimed(place)
            if sum(others.values()) + share > 1 + _SLACK:
                listed = ", ".join(f"process {pid}: {of:g}" for pid, of in others.items())
                raise DeviceFailed(
                    f"{device}: {share:g} of it is asked for, and of 1 is taken {listed}. End one "
                    "of these, lower RIS_DEVICE_SHARE, or use RIS_DEVICE=cpu here."
                )
            path = place / f"{os.getpid()}-{uuid.uuid4().hex[:8]}.claim"
            file = path.open("w+")
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write(repr(share))
            file.flush()
            return DeviceClaim(path, share, file)
    except OSError as error:
        raise StorageFailed(
            f"{place}: {error.strerror or error}; no device can be shared"
        ) from error


def _claimed(place: Path) -> dict[str, float]:
    """Shares by process; what dead ones left is removed."""
    found: dict[str, float] = {}
    for path in sorted(place.glob("*.claim")):
        with path.open("r+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:  # its process lives
                pid = path.name.split("-")[0]
                found[pid] = found.get(pid, 0.0) + float(file.read() or 1)
            else:
                path.unlink()
    return found
