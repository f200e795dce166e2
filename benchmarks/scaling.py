"""What an archive of many cameras takes: sums from measured figures (docs/scaling.md).

    .venv/bin/python -m benchmarks.scaling [--cameras 1000] [--days 90]

Prints the tables of docs/scaling.md, whose rows a test compares with these. Nothing is measured
here: every input is a figure of benchmarks/LOG.md or a choice, named beside it.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass

DAY_S = 86_400
INTERVALS_S = (1, 2, 10)
"""Seconds between indexed frames of a camera."""

INDEX_BYTES = 11_684
"""A frame, vectors and codes, sealed fixed cameras (bytes-a-frame-fixed-sealed)."""
SCANNED_BYTES = 3_400
"""Of these, what a scan reads: 3.1 GB of codes and 0.3 GB of whole-frame descriptors a million."""
OPEN_BYTES = 65_920
"""A frame that is not sealed: cameras that move."""
PICTURE_BYTES = 32_000
"""A kept picture of 640 x 272; other sizes differ."""
PIN_BYTES = 120
"""A frame in a query worker's own memory: id, time, checksums."""
EMBED_S = 0.035
"""A frame through EfficientNet-Lite0 on a machine of two cores."""
APPEND_S = 0.03507 / 64
"""A frame appended and committed (append-commit-64-frames-at-1000000)."""
SCAN_CORE_S = 2 * 0.885e-6
"""Core-seconds a frame of the scan (every-cell-1000000: two cores), of 25 query rows."""
WHOLE_S = 3.155e-6
"""Seconds a frame of the whole default search, unfiltered, in one process (default-1000000)."""
HOUR_S = 0.356
"""The whole search over a camera's hour (default-camera-hour-1000000), little of it stage 1."""
CORES = 16
MEMORY_BYTES = 128e9
"""A machine to count in."""


@dataclass(frozen=True, slots=True)
class Archive:
    """``cameras`` for ``days``, a frame each ``every_s``."""

    cameras: int
    days: int
    every_s: int

    @property
    def frames(self) -> float:
        return self.cameras * self.days * DAY_S / self.every_s

    @property
    def row(self) -> str:
        """Frames; TB of index, pictures; two-core machines that ingest keeps busy; shards."""
        ingest = self.cameras / self.every_s * (EMBED_S + APPEND_S)
        cells = (
            f"{self.every_s} s",
            f"{self.frames / 1e9:.2f}",
            f"{self.frames * INDEX_BYTES / 1e12:.1f}",
            f"{self.frames * OPEN_BYTES / 1e12:.0f}",
            f"{self.frames * PICTURE_BYTES / 1e12:.0f}",
            f"{ingest:.1f}",
            f"{self.cameras * self.days * 24 / 1e6:.2f}",
        )
        return f"| {' | '.join(cells)} |"


def scan_row(name: str, frames: float) -> str:
    """What a search of so many frames takes: seconds in one process, core-seconds of scanning,
    machines that hold what is scanned, seconds on them, memory of the query worker."""
    held = max(1, -(-int(frames * SCANNED_BYTES) // int(MEMORY_BYTES)))
    rest_s = HOUR_S + frames * (WHOLE_S - SCAN_CORE_S / 2)
    spread_s = frames * SCAN_CORE_S / (held * CORES)
    cells = (
        name,
        f"{frames / 1e6:.1f}",
        f"{HOUR_S + frames * WHOLE_S:.1f}",
        f"{frames * SCAN_CORE_S:.1f}",
        f"{frames * SCANNED_BYTES / 1e9:.1f}",
        f"{held}",
        f"{spread_s:.2f}",
        f"{rest_s:.1f}",
        f"{frames * PIN_BYTES / 1e9:.1f}",
    )
    return f"| {' | '.join(cells)} |"


def searches(cameras: int, days: int) -> dict[str, float]:
    """Frames that searches of different widths look at, at a frame a second and a tenth."""
    return {
        "one camera, an hour, 1 s": 3_600,
        "one camera, a day, 1 s": DAY_S,
        "20 cameras, a day, 1 s": 20 * DAY_S,
        f"{cameras} cameras, an hour, 1 s": cameras * 3_600,
        f"{cameras} cameras, a day, 10 s": cameras * DAY_S / 10,
        f"{cameras} cameras, a day, 1 s": cameras * DAY_S,
        f"everything, {days} days, 10 s": cameras * days * DAY_S / 10,
        f"everything, {days} days, 1 s": cameras * days * DAY_S,
    }


def tables(cameras: int, days: int) -> list[str]:
    """Rows of both tables."""
    archive = [Archive(cameras, days, every_s).row for every_s in INTERVALS_S]
    return [*archive, *(scan_row(name, n) for name, n in searches(cameras, days).items())]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cameras", type=int, default=1000)
    parser.add_argument("--days", type=int, default=90)
    given = parser.parse_args()
    sys.stdout.write("\n".join(tables(given.cameras, given.days)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
