"""What an index holds, as a process that starts now reads it, and what is wrong with it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import psycopg

from benchmarks.scratch import reader
from models.repositories import index as index_record
from worker.compacting import learn_basis
from worker.context import Context
from worker.core.search_params import SearchParams
from worker.core.types import FloatArray
from worker.errors import IndexDamaged
from worker.index.store import PinnedShard
from worker.pinning import pin_shards

Wrong = dict[str, int]
"""How many frames, or things, are wrong in which way."""
Described = dict[int, tuple[FloatArray, FloatArray]]
"""Global descriptor (d,) and patches (c, d) by frame id."""


def rows(context: Context, statement: str, *given: object) -> list[tuple[Any, ...]]:
    url = str(context.settings.database_url).replace("+psycopg", "")
    with psycopg.connect(url) as connection:
        return connection.execute(statement.encode(), given).fetchall()


def frames_of(context: Context, camera: str) -> list[tuple[Any, ...]]:
    """(pts, picture, runs) of a camera's frames in the live generation."""
    return rows(
        context,
        """select f.pts, f.picture_sha256,
            (select count(*) from f_map_runs r join shards s on s.id = r.shard_id
             join index_generations g on g.id = s.generation_id
             where r.frame_id = f.id and g.state = 'live')
        from frames f join cameras c on c.id = f.camera_id where c.name = %s
        order by f.t_utc, f.pts""",
        camera,
    )


def wrong_frames(context: Context, camera: str, expected: list[tuple[Any, ...]]) -> Wrong:
    """Frames of a camera against those it must have, (pts, picture, runs)."""
    found = frames_of(context, camera)
    wanted = [(pts, sha256) for pts, sha256, _ in expected]
    there = [(pts, sha256) for pts, sha256, _ in found]
    missing = sum(max(0, wanted.count(one) - there.count(one)) for one in set(wanted))
    more = sum(max(0, there.count(one) - wanted.count(one)) for one in set(there) & set(wanted))
    return {
        "missing": missing + sum(runs == 0 for *_, runs in found),
        "doubled": more + sum(max(0, runs - 1) for *_, runs in found),
        "other": sum(one not in wanted for one in there),
    }


def pinned(now: Context, camera: str) -> list[PinnedShard]:
    """The camera's shards of the live generation. ``now``: of a reader that has just begun."""
    ((camera_id,),) = rows(now, "select id from cameras where name = %s", camera)
    params = SearchParams(camera_ids=(camera_id,))
    with now.db.snapshot() as session:
        live = index_record.live_generation(session)
        assert live is not None
        learn_basis(now, session, live)
        shards = pin_shards(session, now.index, now.f_maps, live, params, now.damage)
    return [shard for shard in shards if shard.camera_id == camera_id]


def descriptors(context: Context, camera: str) -> Described:
    """As another process reads them. Raises :class:`IndexDamaged` where a checksum is not met."""
    found: Described = {}
    for shard in pinned(reader(context), camera):
        at = np.arange(shard.blocks)
        read = shard.read("global", at), shard.read("patch", at)
        for frame_id, *both in zip(shard.f_map.frame_id.tolist(), *read, strict=True):
            found[frame_id] = (both[0], both[1])
    return found


def wrong_descriptors(
    context: Context, camera: str, expected: Described, least_cosine: float = 1.0
) -> Wrong:
    """Frames whose descriptors are not as they were, or with ``least_cosine`` whose patches are
    turned by more than that."""
    try:
        found = descriptors(context, camera)
    except IndexDamaged as error:
        sys.stderr.write(f"{error}\n")
        return {"damaged": 1}
    changed = 0
    for frame_id, (global_d, patches_cd) in expected.items():
        global_now, patches_now = found.get(frame_id, (0 * global_d, 0 * patches_cd))
        cosine = (patches_cd * patches_now).sum(axis=1)
        near = np.array_equal(patches_cd, patches_now) or (
            least_cosine < 1 and cosine.min() >= least_cosine
        )
        changed += not (near and np.array_equal(global_d, global_now))
    return {"changed": changed}


def wrong_codes(context: Context, camera: str) -> int:
    """Frames whose codes on disk are not those of their vectors."""
    now, wrong = reader(context), 0
    for shard in pinned(now, camera):
        wrong += shard.blocks - shard.coded
        basis = now.compact.basis([shard])
        for first, codes in now.compact.chunks(shard, basis, 4):
            at = np.arange(first, first + len(codes))
            made = basis.encode(shard.read("patch", at))
            wrong += int((codes[:, : shard.layout.cells] != made).any(axis=(1, 2)).sum())
    return wrong


def forgotten(context: Context) -> list[Path]:
    """Files of the index that no row speaks of, and pictures and uploads that nobody has."""
    stored = {path.stem: path for path in context.pictures.root.rglob("*.*")}
    stored |= {path.name: path for path in context.uploads.root.rglob("*")}
    named = "select picture_sha256 from frames union select picture_sha256 from search_queries"
    for (sha256,) in rows(context, named):
        stored.pop(sha256, None)
    expected = set()
    shards = rows(
        context,
        "select generation_id, id, revision, sealed_count, coded_count, frame_count from shards",
    )
    for generation_id, shard_id, revision, sealed, coded, frames in shards:
        folder = context.index.generation_folder(generation_id)
        folder /= f"s{shard_id}.{revision}".removesuffix(".0")
        names = ["global.vec", "patch.vec", "writer.lock", "derived.lock"]
        names += ["patch.runs"] * (sealed > 0) + ["codes.runs"] * (0 < sealed <= coded)
        names += ["codes.vec"] * (coded > sealed)
        expected |= {folder / name for name in names} if frames else set()
    found = {path for path in context.index.root.glob("g*/s*/**/*") if path.is_file()}
    empty = {path for path in context.index.root.glob("g*/s*") if not any(path.iterdir())}
    return sorted([*stored.values(), *(found - expected), *empty])
