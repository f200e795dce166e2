"""What sealing saves, by camera: rows per cell, and bytes of a camera-day in each codec.

    .venv/bin/python -m benchmarks.cell_runs ../shared/data/ris-dev [--backbone B] [--distance A]
        [--light 0.15] [--noise 4] [--shake 2]

Embeds the pictures of each camera of a labelled dataset, about one a second, and finds their cell
runs as sealing does. Rows are counted after the first four pictures, which begin most of them: a
clip is short, an hour is not. ``untouched``: frames for which a row stands in cells that no label
comes near, which is what a camera costs while nothing happens. Bytes are patches and their runs;
whole-frame descriptors and codes come on top. Prints one JSON line per camera; no search is made
(`ris eval --sealed` measures what sealing costs in quality).

What breaks it, made on the same pictures: ``--light`` takes that share of the light, as at dusk,
``--noise`` adds a sensor's of that many grey levels, anew for each picture, and ``--shake`` moves
each by up to so many pixels each way, as wind does a mast.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.machine import machine
from worker.backbones.embedder import embed_batched
from worker.backbones.registry import load_backbone, seal_distance
from worker.config import settings
from worker.core.cell_runs import RunFinder
from worker.core.types import BoolArray, FloatArray, GridSize, ImageArray
from worker.labelled import Dataset, LabelledFrame, read_dataset
from worker.video.picture import load_query_picture

DAY_S = 86_400
FIRST = 4
RUN_BYTES = 8
ITEM_BYTES = {"fp32": 4, "fp16": 2, "int8": 1}


@dataclass(frozen=True, slots=True)
class Found:
    """Rows begun per frame after the first few, float64 (cells,), and cells per row in all."""

    begun_c: FloatArray
    cells_a_row: float


def each_second(frames: list[LabelledFrame]) -> list[LabelledFrame]:
    """Frames in order of time, thinned out to about one a second."""
    ordered = sorted(frames, key=lambda frame: frame.time_s)
    gaps_s = np.diff([frame.time_s for frame in ordered])
    step = max(1, round(1 / float(np.median(gaps_s)))) if gaps_s.size else 1
    return ordered[::step]


def touched(frames: list[LabelledFrame], grid: GridSize) -> BoolArray:
    """Cells that a label comes within a cell of, bool (cells,)."""
    near = np.zeros(grid, dtype=np.bool_)
    for frame in frames:
        for box in frame.boxes.values():
            rows = slice(max(0, int(box.y0 * grid.h) - 1), int(box.y1 * grid.h) + 2)
            cols = slice(max(0, int(box.x0 * grid.w) - 1), int(box.x1 * grid.w) + 2)
            near[rows, cols] = True
    return near.ravel()


def find(patches_ncd: FloatArray, distance: float) -> Found:
    finder = RunFinder(patches_ncd.shape[1], distance)
    begun = [finder.add(patches_cd, patches_cd, exact=False) for patches_cd in patches_ncd]
    whole = len(begun) * patches_ncd.shape[1] / finder.rows
    return Found(np.mean(begun[min(FIRST, len(begun) // 2) :], axis=0), whole)


@dataclass(frozen=True, slots=True)
class Disturbed:
    """``light``: share of it that is left. ``noise``: standard deviation in grey levels.
    ``shake_px``: the farthest that a picture is moved."""

    light: float
    noise: float
    shake_px: int

    def picture(self, img_hwc: ImageArray, rng: np.random.Generator) -> ImageArray:
        """uint8 (h, w, 3), the edge repeated where it was moved."""
        levels = img_hwc.astype(np.float32) * self.light
        if self.shake_px:
            reach = self.shake_px
            padded = np.pad(levels, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
            top, left = rng.integers(0, 2 * reach + 1, 2)
            levels = padded[top : top + img_hwc.shape[0], left : left + img_hwc.shape[1]]
        if self.noise:
            levels = levels + rng.normal(0, self.noise, levels.shape)
        made: ImageArray = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
        return made


def report(dataset: Dataset, backbone_name: str, distance: float, disturbed: Disturbed) -> None:
    backbone = load_backbone(backbone_name, backbones_dir=settings().backbones_dir)
    spec = backbone.spec
    rng = np.random.default_rng(1)
    by_camera: dict[str, list[LabelledFrame]] = {}
    for frame in dataset.frames:
        by_camera.setdefault(frame.camera, []).append(frame)
    for camera, frames in sorted(by_camera.items()):
        chosen = each_second(frames)
        imgs_hwc = [
            disturbed.picture(
                load_query_picture(dataset.folder / frame.image, settings().query_picture_max_px),
                rng,
            )
            for frame in chosen
        ]
        found = find(embed_batched(backbone, imgs_hwc, 8).patches_ncd, distance)
        quiet = ~touched(frames, spec.grid)
        rows_a_frame = float(found.begun_c.sum())
        whole = {name: spec.grid.cells * spec.patch_dim * n for name, n in ITEM_BYTES.items()}
        sealed = {
            name: rows_a_frame * (spec.patch_dim * n + RUN_BYTES) for name, n in ITEM_BYTES.items()
        }
        begun = float(found.begun_c[quiet].mean()) if quiet.any() else 0.0
        figure = {
            "name": f"cells-a-row-{camera}",
            "value": round(spec.grid.cells / max(rows_a_frame, 1e-9), 2),
            "unit": "cells",
            "peer": "not sealed",
            "peer_value": 1,
            "ratio": round(spec.grid.cells / max(rows_a_frame, 1e-9), 2),
            "machine": machine(),
            "backbone": backbone_name,
            "distance": distance,
            "disturbed": asdict(disturbed),
            "frames": len(chosen),
            "cells_a_row_of_the_clip": round(found.cells_a_row, 2),
            "gb_a_day": {name: round(n * DAY_S / 1e9, 2) for name, n in whole.items()},
            "gb_a_day_sealed": {name: round(n * DAY_S / 1e9, 2) for name, n in sealed.items()},
            "untouched_cells": int(quiet.sum()),
            "untouched": round(1 / begun, 1) if begun else None,
        }
        sys.stdout.write(json.dumps(figure) + "\n")
        sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--backbone", default="efficientnet-lite0")
    parser.add_argument("--distance", type=float, default=None, help="default: the backbone's own")
    parser.add_argument("--light", type=float, default=1.0)
    parser.add_argument("--noise", type=float, default=0.0)
    parser.add_argument("--shake", type=int, default=0)
    given = parser.parse_args()
    own = seal_distance(given.backbone)
    distance = own if given.distance is None else given.distance
    disturbed = Disturbed(given.light, given.noise, given.shake)
    report(read_dataset(given.folder), given.backbone, distance, disturbed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
