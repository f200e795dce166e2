"""A labelled dataset: a folder with ``frames.jsonl`` and ``queries.jsonl`` (docs/evaluation.md)."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from worker.core.geometry import roi_from_xyxy
from worker.core.types import Box
from worker.errors import InputInvalid, RoiInvalid


@dataclass(frozen=True, slots=True)
class LabelledFrame:
    """One picture of the dataset. ``boxes``: identity -> normalised box."""

    image: str
    scene: str
    camera: str
    time_s: float
    boxes: dict[str, Box]


@dataclass(frozen=True, slots=True)
class LabelledQuery:
    """One query: an ROI on a picture and which pictures show the same subject."""

    image: str
    roi: Box
    identity: str
    scene: str
    positives: frozenset[str]
    positives_other_camera: frozenset[str]
    ignore: frozenset[str]


@dataclass(frozen=True, slots=True)
class Dataset:
    """Frames and queries of one split."""

    folder: Path
    frames: tuple[LabelledFrame, ...]
    queries: tuple[LabelledQuery, ...]


def read_dataset(folder: Path) -> Dataset:
    """Read a split. Raises :class:`InputInvalid` naming file and line of what is malformed."""
    sizes: dict[str, tuple[float, float]] = {}

    def frame(fields: dict[str, Any]) -> LabelledFrame:
        w, h = float(fields["width"]), float(fields["height"])
        sizes[fields["image"]] = (w, h)
        boxes = {str(b["id"]): _normalised(b["xyxy"], w, h) for b in fields["boxes"]}
        return LabelledFrame(
            fields["image"],
            fields["scene"],
            fields["camera"],
            float(fields["time"]),
            {identity: box for identity, box in boxes.items() if box is not None},
        )

    def query(fields: dict[str, Any]) -> LabelledQuery:
        image = fields["query_image"]
        if image not in sizes:
            raise ValueError(f"query_image {image!r} is not in frames.jsonl")
        roi = _normalised(fields["roi"], *sizes[image])
        if roi is None:
            raise ValueError(f"query on {image} has an ROI without extent in the picture")
        return LabelledQuery(
            image,
            roi,
            str(fields["id"]),
            fields["scene"],
            frozenset(fields["positives"]),
            frozenset(fields["positives_other_camera"]),
            frozenset(fields["ignore"]) | {image},
        )

    frames = _read_lines(folder / "frames.jsonl", frame)
    return Dataset(folder, tuple(frames), tuple(_read_lines(folder / "queries.jsonl", query)))


_Line = TypeVar("_Line")


def _read_lines(path: Path, read: Callable[[dict[str, Any]], _Line]) -> list[_Line]:
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise InputInvalid(f"{path}: {error.strerror or error}; give a dataset folder") from error
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(read(json.loads(line)))
        except KeyError as error:
            raise InputInvalid(f"{path}:{number}: field {error} is missing") from error
        except (TypeError, ValueError, IndexError, ZeroDivisionError, RoiInvalid) as error:
            raise InputInvalid(f"{path}:{number}: malformed: {error}") from error
    return found


def _normalised(xyxy: Sequence[float], w: float, h: float) -> Box | None:
    x0, x1 = (min(max(xyxy[i] / w, 0.0), 1.0) for i in (0, 2))
    y0, y1 = (min(max(xyxy[i] / h, 0.0), 1.0) for i in (1, 3))
    return roi_from_xyxy([x0, y0, x1, y1]) if x0 < x1 and y0 < y1 else None
