"""Which frames of clips the sampling policy `change` keeps, beside the mean of the whole picture.

    .venv/bin/python -m benchmarks.change_policy ../shared/data/ris-dev/videos/*.mp4
        [--level 4] [--every 0.2]

The peer keeps a frame when the mean absolute difference to the last one kept passes the level: it
does not see what is small. Prints one JSON line per clip: frames that may be kept, that the policy
keeps, and that the peer keeps.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np

from benchmarks.machine import machine
from worker.config import settings
from worker.core.sampling import ChangePolicy, sampler
from worker.core.types import FloatArray, SizePx
from worker.video.decode import Converter
from worker.video.probe import probe


def grays(path: Path, every_s: float) -> Iterator[tuple[float, FloatArray]]:
    """Seconds and small grey picture of frames at least ``every_s`` apart."""
    converter = Converter(probe(path, settings().video_max_px), SizePx(32, 32), 32)
    last_s = -every_s
    with av.open(str(path)) as container:
        for picture in container.decode(video=0):
            if picture.time is not None and picture.time - last_s >= every_s:
                last_s = picture.time
                yield last_s, converter.gray(picture)


def main() -> None:
    """Run from the command line; the docstring above says how."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clips", type=Path, nargs="+")
    parser.add_argument("--level", type=float, default=4.0)
    parser.add_argument("--every", type=float, default=0.2, help="seconds between frames")
    asked = parser.parse_args()
    for path in asked.clips:
        chosen = sampler(ChangePolicy(asked.level, 60.0, asked.every))
        frames = kept = by_mean = 0
        reference_hw: FloatArray | None = None
        for t_s, gray_hw in grays(path, asked.every):
            frames += 1
            kept += chosen.keep(t_s, gray_hw=gray_hw)
            if reference_hw is None or np.abs(gray_hw - reference_hw).mean() > asked.level:
                by_mean, reference_hw = by_mean + 1, gray_hw
        figure = {
            "name": "change_policy_kept",
            "clip": path.name,
            "value": kept,
            "unit": "frames",
            "peer": "mean difference of the whole picture",
            "peer_value": by_mean,
            "ratio": kept / by_mean if by_mean else None,
            "n": frames,
            "machine": machine(),
        }
        sys.stdout.write(json.dumps(figure) + "\n")


if __name__ == "__main__":
    main()
