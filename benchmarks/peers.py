"""Other engines on the same vectors, where they are installed."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from worker.core.backbone_spec import BackboneSpec
from worker.index.store import PinnedShard
from worker.ranked_frame import QueryDescriptors

GATE = 50
"""Candidates of the first stage."""
TOP = 10


def qdrant(
    shards: Sequence[PinnedShard], spec: BackboneSpec, folder: str, quantised: bool
) -> Callable[[QueryDescriptors], list[tuple[int, float]]]:
    """The same vectors in Qdrant Edge; raises ImportError where it is not installed."""
    q: Any = importlib.import_module("qdrant_edge")

    config = q.EdgeConfig(
        vectors={
            "global": q.EdgeVectorParams(size=spec.global_dim, distance=q.Distance.Dot),
            "patch": q.EdgeVectorParams(
                size=spec.patch_dim,
                distance=q.Distance.Dot,
                multivector_config=q.MultiVectorConfig(q.MultiVectorComparator.MaxSim),
                hnsw_config=q.HnswIndexConfig(m=0, ef_construct=4, full_scan_threshold=10**9),
                quantization_config=q.ScalarQuantizationConfig(q.ScalarType.Int8, always_ram=True)
                if quantised
                else None,
            ),
        }
    )
    edge = q.EdgeShard.create(folder, config)
    for shard in shards:
        for start in range(0, shard.blocks, 32):
            at = np.arange(start, min(start + 32, shard.blocks))
            globals_nd, patches_ncd = shard.read("global", at), shard.read("patch", at)
            points = [
                q.Point(
                    int(shard.f_map.frame_id[block]), {"global": g.tolist(), "patch": p.tolist()}
                )
                for block, g, p in zip(at, globals_nd, patches_ncd, strict=True)
            ]
            edge.update(q.UpdateOperation.upsert_points(points))
    edge.optimize()

    def search(query: QueryDescriptors) -> list[tuple[int, float]]:
        first = q.Prefetch(
            GATE,
            query=q.Query.Nearest(query.global_d.tolist(), using="global"),
            params=q.SearchParams(exact=True),
        )
        found = edge.query(
            q.QueryRequest(
                TOP,
                query=q.Query.Nearest(query.patches_qd.tolist(), using="patch"),
                prefetches=[first],
            )
        )
        return [(int(point.id), float(point.score) / len(query.patches_qd)) for point in found]

    return search
