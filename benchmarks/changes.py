"""Are planted changes found, within one sampling interval, and is nothing found where none is?

    .venv/bin/python -m benchmarks.changes ../shared/data/ris-dev [--events 40] [--seed 1]

Takes the fixed cameras of a labelled dataset with at least 24 pictures. A thing (a labelled box of
another camera) is pasted into a place that no label touches, from one random picture to another;
the pictures are embedded with the default backbone and the box's history is asked for, as `ris
changes` does, from full descriptors. The control asks the same boxes without the thing. An event is
found when one state begins at its first picture and another at the first after it, each within one
picture. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.machine import machine
from worker.backbones.base import Backbone
from worker.backbones.embedder import embed_batched
from worker.backbones.registry import load_backbone
from worker.core.changes import box_history
from worker.core.geometry import roi_cells
from worker.core.types import Box, FloatArray, ImageArray, IntArray

MIN_PICTURES = 24
MIN_HOLD = 4


@dataclass(frozen=True, slots=True)
class Filmed:
    """Pictures of one camera in order of time, their labels, and their descriptors (n, c, d)."""

    name: str
    imgs_hwc: list[ImageArray]
    boxes: list[Box]
    patches_ncd: FloatArray


def load(folder: Path, backbone: Backbone, at_most: int) -> list[Filmed]:
    by_camera: dict[str, list[dict[str, Any]]] = {}
    for line in (folder / "frames.jsonl").read_text().splitlines():
        row = json.loads(line)
        by_camera.setdefault(row["camera"], []).append(row)
    made = []
    for name, filmed in sorted(by_camera.items()):
        if len(filmed) < MIN_PICTURES:
            continue
        rows = sorted(filmed, key=lambda row: float(row["time"]))[:at_most]
        imgs_hwc = [np.asarray(Image.open(folder / row["image"]).convert("RGB")) for row in rows]
        boxes = [_box(label["xyxy"], row) for row in rows for label in row["boxes"]]
        made.append(Filmed(name, imgs_hwc, boxes, embed_batched(backbone, imgs_hwc, 8).patches_ncd))
    return made


def _box(xyxy: list[float], row: dict[str, Any]) -> Box:
    w_px, h_px = row["width"], row["height"]
    return Box(xyxy[0] / w_px, xyxy[1] / h_px, xyxy[2] / w_px, xyxy[3] / h_px)


def free_place(camera: Filmed, size: float, rng: np.random.Generator) -> Box | None:
    """A square that no label touches."""
    for _ in range(200):
        x0, y0 = rng.uniform(0, 1 - size, 2)
        place = Box(float(x0), float(y0), float(x0 + size), float(y0 + size))
        if not any(
            box.x0 < place.x1 and place.x0 < box.x1 and box.y0 < place.y1 and place.y0 < box.y1
            for box in camera.boxes
        ):
            return place
    return None


def a_thing(cameras: list[Filmed], other_than: Filmed, rng: np.random.Generator) -> ImageArray:
    """A labelled piece of another camera's first picture, or any piece of it."""
    others = [camera for camera in cameras if camera is not other_than]
    camera = others[int(rng.integers(0, len(others)))]
    img_hwc = camera.imgs_hwc[0]
    h_px, w_px = img_hwc.shape[:2]
    box = camera.boxes[int(rng.integers(0, min(5, len(camera.boxes))))]
    y0, x0 = int(box.y0 * h_px), int(box.x0 * w_px)
    return img_hwc[y0 : max(y0 + 16, int(box.y1 * h_px)), x0 : max(x0 + 16, int(box.x1 * w_px))]


def pasted(img_hwc: ImageArray, thing_hwc: ImageArray, place: Box) -> ImageArray:
    """The thing fills the middle 70 % of the place."""
    h_px, w_px = img_hwc.shape[:2]
    margin = 0.15 * (place.x1 - place.x0)
    x0, x1 = int((place.x0 + margin) * w_px), int((place.x1 - margin) * w_px)
    y0, y1 = int((place.y0 + margin) * h_px), int((place.y1 - margin) * h_px)
    made = img_hwc.copy()
    made[y0:y1, x0:x1] = np.asarray(Image.fromarray(thing_hwc).resize((x1 - x0, y1 - y0)))
    return made


def one_event(
    cameras: list[Filmed], backbone: Backbone, size: float, rng: np.random.Generator
) -> tuple[bool, int, int] | None:
    """Was it found; states besides; states of the control beyond its first."""
    camera = cameras[int(rng.integers(0, len(cameras)))]
    place = free_place(camera, size, rng)
    if place is None:
        return None
    n = len(camera.imgs_hwc)
    begin = int(rng.integers(MIN_HOLD, n - 2 * MIN_HOLD))
    end = int(rng.integers(begin + MIN_HOLD, n - MIN_HOLD + 1))
    thing = a_thing(cameras, camera, rng)
    imgs_hwc = [pasted(img_hwc, thing, place) for img_hwc in camera.imgs_hwc[begin:end]]
    planted = camera.patches_ncd.copy()
    planted[begin:end] = embed_batched(backbone, imgs_hwc, 8).patches_ncd
    grid = backbone.spec.grid
    cells = roi_cells(place, grid)
    ids: IntArray = cells[:, 0] * grid.w + cells[:, 1]
    begins = [state.first for state in box_history(planted[:, ids]).states[1:]]
    found = [any(abs(first - at) <= 1 for first in begins) for at in (begin, end)]
    control = len(box_history(camera.patches_ncd[:, ids]).states) - 1
    return all(found), len(begins) - sum(found), control


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--events", type=int, default=40)
    parser.add_argument("--pictures", type=int, default=60, help="of each camera")
    parser.add_argument(
        "--size", type=float, default=0.2, help="of the box, of the picture's sides"
    )
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    backbone = load_backbone(
        "efficientnet-lite0", device="cpu", dtype="float32", threads=0, backbones_dir=None
    )
    cameras = load(given.dataset, backbone, given.pictures)
    rng = np.random.default_rng(given.seed)
    done = [one_event(cameras, backbone, given.size, rng) for _ in range(given.events)]
    events = [event for event in done if event is not None]
    figure = {
        "name": f"changes-planted-{given.size}",
        "value": round(sum(found for found, _, _ in events) / len(events), 3),
        "unit": "share of events found at both ends within one picture",
        "peer": "states found in the same boxes without the thing, per box",
        "peer_value": round(sum(control for _, _, control in events) / len(events), 3),
        "ratio": None,
        "n": len(events),
        "machine": machine(),
        "other_states": round(sum(more for _, more, _ in events) / len(events), 3),
        "cameras": [camera.name for camera in cameras],
    }
    sys.stdout.write(json.dumps(figure) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
