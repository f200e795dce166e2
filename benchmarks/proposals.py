"""How many labelled subjects have a proposed box, and how many proposed boxes have a subject?

    .venv/bin/python -m benchmarks.proposals ../shared/data/ris-dev

Takes the labelled pictures of a dataset, each compared with the eight before and after it, as the
API does. A subject is found by a box of IoU 0.3 or more. The peer is as many boxes of the same
sizes at random places. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.machine import machine
from worker.core.proposals import OTHERS, WIDTH_PX, propose_boxes
from worker.core.types import Box, ImageArray

FOUND_IOU = 0.3


@dataclass(slots=True)
class Counts:
    """Sums over the pictures of one camera."""

    pictures: int = 0
    subjects: int = 0
    found: int = 0
    by_chance: int = 0
    boxes: int = 0
    on_subject: int = 0
    took_s: float = 0.0


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    folder = parser.parse_args().dataset
    by_camera: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in (folder / "frames.jsonl").read_text().splitlines():
        row = json.loads(line)
        by_camera[row["camera"]].append(row)
    counted = {name: count(folder, rows) for name, rows in by_camera.items()}
    counted = {name: one for name, one in counted.items() if one.subjects}
    subjects = sum(one.subjects for one in counted.values())
    boxes = sum(one.boxes for one in counted.values())
    pictures = sum(one.pictures for one in counted.values())
    found = sum(one.found for one in counted.values()) / subjects
    by_chance = sum(one.by_chance for one in counted.values()) / subjects
    result = {
        "name": "proposals-found",
        "value": round(found, 3),
        "unit": "share of subjects",
        "peer": "as many boxes at random places",
        "peer_value": round(by_chance, 3),
        "ratio": round(found / max(by_chance, 1e-3), 1),
        "n": subjects,
        "boxes_a_picture": round(boxes / pictures, 2),
        "boxes_on_a_subject": round(sum(one.on_subject for one in counted.values()) / boxes, 3),
        "ms_a_picture": round(1000 * sum(one.took_s for one in counted.values()) / pictures, 1),
        "by_camera": {name: round(one.found / one.subjects, 2) for name, one in counted.items()},
        "machine": machine(),
    }
    json.dump(result, sys.stdout)
    print()


def count(folder: Path, rows: list[dict[str, Any]]) -> Counts:
    """All labelled pictures of one camera."""
    rows.sort(key=lambda row: float(row["time"]))
    imgs_hwc = [small(folder / row["image"]) for row in rows]
    counts, rng = Counts(), np.random.default_rng(1)
    for at, row in enumerate(rows):
        if not row["labelled"]:
            continue
        first = max(0, at - OTHERS // 2)
        near = range(first, min(len(rows), at + OTHERS // 2 + 1))
        began = time.perf_counter()
        boxes = propose_boxes(imgs_hwc[at], [imgs_hwc[one] for one in near if one != at])
        counts.took_s += time.perf_counter() - began
        labelled = [labelled_box(label["xyxy"], row) for label in row["boxes"]]
        counts.pictures += 1
        counts.subjects += len(labelled)
        counts.boxes += len(boxes)
        counts.found += overlapped(labelled, boxes)
        counts.on_subject += overlapped(boxes, labelled)
        counts.by_chance += overlapped(labelled, [elsewhere(box, rng) for box in boxes])
    return counts


def small(path: Path) -> ImageArray:
    """A picture as the API compares it."""
    with Image.open(path) as picture:
        h_px = max(1, round(WIDTH_PX * picture.height / picture.width))
        picture.draft("RGB", (WIDTH_PX, h_px))
        resized = picture.convert("RGB").resize((WIDTH_PX, h_px), Image.Resampling.BOX)
    return np.array(resized, dtype=np.uint8)


def labelled_box(xyxy_px: list[float], row: dict[str, Any]) -> Box:
    x0, y0, x1, y1 = xyxy_px
    return Box(x0 / row["width"], y0 / row["height"], x1 / row["width"], y1 / row["height"])


def elsewhere(box: Box, rng: np.random.Generator) -> Box:
    """A box of that size at a random place."""
    w, h = box.x1 - box.x0, box.y1 - box.y0
    x0, y0 = rng.uniform(0, 1 - w), rng.uniform(0, 1 - h)
    return Box(x0, y0, x0 + w, y0 + h)


def overlapped(wanted: list[Box], given: list[Box]) -> int:
    """How many boxes have one of the others on them."""
    return sum(any(iou(one, other) >= FOUND_IOU for other in given) for one in wanted)


def iou(a: Box, b: Box) -> float:
    w = min(a.x1, b.x1) - max(a.x0, b.x0)
    h = min(a.y1, b.y1) - max(a.y0, b.y0)
    common = max(0.0, w) * max(0.0, h)
    return common / (a.area + b.area - common)


if __name__ == "__main__":
    main()
