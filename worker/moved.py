"""What of a shard lies on object storage: found by what Postgres says, and removed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from models.index import Shard
from worker.context import Context
from worker.errors import ObjectStoreUnavailable
from worker.index.layout import ShardLayout
from worker.index.moved_file import url_in_map
from worker.index.part_cache import StoredObject
from worker.index.runs_file import map_of


def restore_map(layout: ShardLayout, shard: Shard) -> bool:
    """Write the map of a moved shard again unless it is there; whether it was written."""
    if shard.object_url is None or url_in_map(layout.folder) == shard.object_url:
        return False
    map_of(layout, stored_object(shard))
    return True


def stored_object(shard: Shard) -> StoredObject:
    """Where a moved shard's patches lie, as Postgres has it."""
    assert shard.object_url is not None
    assert shard.object_bytes is not None and shard.object_crc32s is not None
    crc32s = np.frombuffer(shard.object_crc32s, dtype="<u4").tolist()
    return StoredObject(shard.object_url, shard.object_bytes, tuple(crc32s))


def objects_of_shard(context: Context, shard: Shard) -> dict[str, int]:
    """Where objects of a shard may lie, and up to which revision they are of no use once its rows
    say so: URLs that end with a slash -> revision. Uploads that were never recorded are among them.
    """
    found = {}
    if shard.object_url is not None:
        found[f"{shard.object_url.rsplit('/', 2)[0]}/"] = shard.revision
    index_url = None if context.objects is None else context.objects.index_url()
    if index_url is not None:
        found[f"{index_url}g{shard.generation_id}/s{shard.id}/"] = shard.revision
    return found


def remove_objects_up_to(context: Context, places: Mapping[str, int]) -> int:
    """Remove objects of shards up to a revision; returns how many. Raises
    :class:`ObjectStoreUnavailable`: then it is to be done again."""
    if not places:
        return 0
    if context.objects is None:
        raise ObjectStoreUnavailable(
            f"objects below {next(iter(places))} are to be removed: set RIS_S3_URL"
        )
    removed = 0
    for place, revision in places.items():
        for entries in context.objects.below(place):
            urls = [one.url for one in entries if place_of(one.url)[2] <= revision]
            removed += remove_objects(context, urls)
    return removed


def remove_objects(context: Context, urls: Sequence[str]) -> int:
    """Remove objects, and what was kept of them here; returns how many."""
    if urls and context.objects is not None:
        context.objects.remove(urls)
    for url in urls:
        if context.index.parts is not None:
            context.index.parts.discard(url)
    return len(urls)


def place_of(url: str) -> tuple[int, int, int]:
    """Generation, shard and revision that an object is named by; (-1, -1, -1) for another name."""
    parts = url.split("/")[-4:]
    numbers = [parts[0].removeprefix("g"), parts[1].removeprefix("s"), parts[2]]
    if len(parts) < 4 or not all(number.isdigit() for number in numbers):
        return -1, -1, -1
    return int(numbers[0]), int(numbers[1]), int(numbers[2])
