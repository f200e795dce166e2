"""What a search reads of a moved shard: parts of its object, by size of a part, or all of it.

    .venv/bin/python -m benchmarks.object_parts ../shared/data/ris-dev [--frames 3600]

Clips are short, a shard is an hour: how often each cell of a camera needs a new row is measured on
a labelled dataset as ``benchmarks.cell_runs`` does, and an hour at a frame a second is then drawn
by chance with these frequencies. Frames that a search reads of the shard are taken by chance.
Prints one JSON line per camera: bytes of the object in int8, and for each size of a part how many
bytes and parts are read.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from benchmarks.cell_runs import each_second, find
from benchmarks.machine import machine
from worker.backbones.embedder import embed_batched
from worker.backbones.registry import load_backbone, seal_distance
from worker.config import settings
from worker.core.types import FloatArray, IntArray
from worker.index.layout import HEADER_BYTES
from worker.labelled import read_dataset
from worker.video.picture import load_query_picture

PART_KIB = (64, 256, 1024)
CANDIDATES = (1, 4, 16)


def drawn_rows(begun_c: FloatArray, frames: int, chance: np.random.Generator) -> IntArray:
    """Row of each cell of each frame, int64 (frames, cells); rows in order of frame and cell."""
    begins_nc = chance.random((frames, begun_c.size)) < begun_c
    begins_nc[0] = True
    number_nc = begins_nc.ravel().cumsum().reshape(begins_nc.shape) - 1
    return np.maximum.accumulate(np.where(begins_nc, number_nc, 0), axis=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--backbone", default="efficientnet-lite0")
    parser.add_argument("--frames", type=int, default=3600)
    given = parser.parse_args()
    backbone = load_backbone(given.backbone, backbones_dir=settings().backbones_dir)
    chance, row_bytes = np.random.default_rng(7), backbone.spec.patch_dim
    dataset = read_dataset(given.dataset)
    for camera in sorted({frame.camera for frame in dataset.frames}):
        chosen = each_second([frame for frame in dataset.frames if frame.camera == camera])
        imgs_hwc = [
            load_query_picture(dataset.folder / frame.image, settings().query_picture_max_px)
            for frame in chosen
        ]
        patches_ncd = embed_batched(backbone, imgs_hwc, 8).patches_ncd
        found = find(patches_ncd, seal_distance(given.backbone))
        rows_nc = drawn_rows(found.begun_c, given.frames, chance)
        total = HEADER_BYTES + (int(rows_nc.max()) + 1) * row_bytes
        read = {}
        for count in CANDIDATES:
            for kib in PART_KIB:
                parts = []
                for _ in range(50):
                    at = chance.choice(given.frames, count, replace=False)
                    start = HEADER_BYTES + np.unique(rows_nc[at]) * row_bytes
                    size = kib * 1024
                    touched = np.concatenate([start // size, (start + row_bytes - 1) // size])
                    parts.append(np.unique(touched).size)
                mean = float(np.mean(parts))
                read[f"{count} frames, parts of {kib} KiB"] = {
                    "parts": round(mean, 1),
                    "bytes": round(mean * kib * 1024),
                }
        line = {"camera": camera, "clip_frames": len(chosen), "object_bytes": total, "read": read}
        sys.stdout.write(json.dumps(line | {"machine": machine()}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
