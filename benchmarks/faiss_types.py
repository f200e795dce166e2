"""FAISS index types over the patches of real footage: recall, time and size of each.

    .venv/bin/python -m benchmarks.faiss_types ../shared/data/ris-dev [--backbone B]

Embeds the pictures of a labelled dataset and asks each index type for the ten nearest patches to
the cells of every labelled query box. ``recall``: share of the exact ten (inner product) among
those found; ``ms``: per box, median, all its cells at once; ``bytes``: of the serialised index per
patch. The peer of every figure is IndexFlatIP in the same run. Prints one JSON line per type.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from benchmarks.machine import machine
from worker.backbones.embedder import embed_batched
from worker.backbones.registry import load_backbone
from worker.config import settings
from worker.core.geometry import roi_cells
from worker.core.types import FloatArray
from worker.labelled import read_dataset
from worker.video.picture import load_query_picture

K = 10
TYPES: tuple[tuple[str, dict[str, float]], ...] = (
    ("Flat", {}),
    ("SQfp16", {}),
    ("SQ8", {}),
    ("PQ48x8", {}),
    ("PQ48x4fs", {}),
    ("PQ48x4fs,Refine(SQfp16)", {"k_factor_rf": 8}),
    ("RaBitQ", {}),
    ("RaBitQ,Refine(SQ8)", {"k_factor_rf": 8}),
    ("IVF512,Flat", {"nprobe": 16}),
    ("IVF512,SQ8", {"nprobe": 16}),
    ("IVF512,SQ8", {"nprobe": 64}),
    ("IVF512,PQ48x4fs,Refine(SQfp16)", {"nprobe": 32, "k_factor_rf": 8}),
    ("IVF512,RaBitQ", {"nprobe": 32}),
    ("RR192,IVF512,RaBitQfs,Refine(SQ8)", {"nprobe": 32, "k_factor_rf": 8}),
    ("RR192,IVF512,RaBitQfs,Refine(SQ8)", {"nprobe": 128, "k_factor_rf": 16}),
    ("HNSW32,Flat", {"efSearch": 64}),
    ("HNSW32,SQ8", {"efSearch": 128}),
)


@dataclass(frozen=True, slots=True)
class Patches:
    """Patches of all pictures, float32 (n, d), and the cells of each query box, (q, d) each."""

    patches_nd: FloatArray
    boxes: list[FloatArray]


def embed(folder: Path, backbone_name: str) -> Patches:
    backbone = load_backbone(backbone_name, backbones_dir=settings().backbones_dir)
    dataset, grid = read_dataset(folder), backbone.spec.grid
    images = [frame.image for frame in dataset.frames]
    patches_ncd = np.concatenate(
        [
            embed_batched(
                backbone,
                [
                    load_query_picture(folder / image, settings().query_picture_max_px)
                    for image in images[start : start + 32]
                ],
                8,
            ).patches_ncd
            for start in range(0, len(images), 32)
        ]
    )
    place = {image: at for at, image in enumerate(images)}
    boxes = []
    for query in dataset.queries:
        cells = roi_cells(query.roi, grid)
        boxes.append(patches_ncd[place[query.image], cells[:, 0] * grid.w + cells[:, 1]])
    return Patches(patches_ncd.reshape(-1, patches_ncd.shape[-1]), boxes)


def measure(factory: str, parameters: dict[str, float], given: Patches) -> dict[str, Any]:
    """What one type finds. ``found``: int64 (q, K) per box."""
    index = faiss.index_factory(given.patches_nd.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
    began_s = time.perf_counter()
    index.train(given.patches_nd)
    index.add(given.patches_nd)
    made_s = time.perf_counter() - began_s
    for name, value in parameters.items():
        faiss.ParameterSpace().set_index_parameter(index, name, value)
    found, times = [], []
    for box in (given.boxes[0], *given.boxes):
        began_s = time.perf_counter()
        _, rows = index.search(np.ascontiguousarray(box), K)
        times.append(1000 * (time.perf_counter() - began_s))
        found.append(rows)
    return {
        "found": found[1:],
        "ms": float(np.median(times[1:])),
        "made_s": made_s,
        "bytes": faiss.serialize_index(index).nbytes / len(given.patches_nd),
    }


def recall(exact: list[np.ndarray], found: list[np.ndarray]) -> float:
    """Share of the exact rows that were found."""
    shares = [
        len(set(exact_k.tolist()) & set(found_k.tolist())) / K
        for exact_qk, found_qk in zip(exact, found, strict=True)
        for exact_k, found_k in zip(exact_qk, found_qk, strict=True)
    ]
    return float(np.mean(shares))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--backbone", default="efficientnet-lite0")
    asked = parser.parse_args()
    given = embed(asked.folder, asked.backbone)
    flat: dict[str, Any] | None = None
    for factory, parameters in TYPES:
        try:
            made = measure(factory, parameters, given)
        except RuntimeError as error:
            sys.stderr.write(f"{factory}: {str(error).splitlines()[0]}\n")
            continue
        flat = flat or made
        told = "".join(f",{name}={value:g}" for name, value in parameters.items())
        figure = {
            "name": f"faiss-{factory}{told}",
            "value": round(made["ms"], 3),
            "unit": "ms a box",
            "peer": "Flat",
            "peer_value": round(flat["ms"], 3),
            "ratio": round(flat["ms"] / made["ms"], 2),
            "machine": machine(),
            "backbone": asked.backbone,
            "patches": len(given.patches_nd),
            "recall": round(recall(flat["found"], made["found"]), 4),
            "bytes": round(made["bytes"], 1),
            "bytes_flat": round(flat["bytes"], 1),
            "made_s": round(made["made_s"], 1),
        }
        sys.stdout.write(json.dumps(figure) + "\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
