"""Parts of objects on the local disk: fetched once, checked, within the bound."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from isal import isal_zlib

from tests.conftest import REPO
from worker.errors import ObjectStoreUnavailable
from worker.index.part_cache import PART_BYTES, PartCache, StoredObject

PAGE = 4096


class Origin:
    """Objects in files of a folder, and which parts of them were asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.asked: list[tuple[str, int]] = []
        root.mkdir()

    def add(self, name: str, byte_count: int) -> StoredObject:
        body = random.Random(name).randbytes(byte_count)
        (self.root / name).write_bytes(body)
        starts = range(0, byte_count, PART_BYTES)
        crc32s = tuple(isal_zlib.crc32(body[at : at + PART_BYTES]) for at in starts)
        return StoredObject(name, byte_count, crc32s)

    def fetch(self, name: str, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        self.asked += [(name, first // PART_BYTES) for first, _ in spans]
        try:
            body = (self.root / name).read_bytes()
        except FileNotFoundError:
            return [b""] * len(spans)
        return [body[first:end] for first, end in spans]

    def whole(self, stored: StoredObject, part: int) -> bytes:
        first, end = stored.span(part)
        return (self.root / stored.url).read_bytes()[first:end]


@pytest.fixture
def origin(tmp_path: Path) -> Origin:
    return Origin(tmp_path / "origin")


def cache_of(origin: Origin, parts: float) -> PartCache:
    return PartCache(origin.root.parent / "cache", int(parts * PART_BYTES), origin.fetch)


def test_parts_are_fetched_once_and_are_what_was_written(origin: Origin) -> None:
    cache, stored = cache_of(origin, 100), origin.add("a", 4 * PART_BYTES + 17)
    found = cache.parts(stored, [0, 2, 4])
    assert found == {part: origin.whole(stored, part) for part in (0, 2, 4)}
    assert cache.parts(stored, [0, 1, 2, 3, 4]).keys() == {0, 1, 2, 3, 4}
    assert sorted(origin.asked) == [("a", part) for part in range(5)]
    assert cache.used_bytes() == 4 * PART_BYTES + PAGE


def test_what_rots_in_the_cache_is_fetched_again(origin: Origin) -> None:
    cache, stored = cache_of(origin, 100), origin.add("a", 3 * PART_BYTES)
    cache.parts(stored, [0, 1, 2])
    (path,) = cache.root.glob("*.parts")
    body = bytearray(path.read_bytes())
    body[PART_BYTES + 5] ^= 1
    path.write_bytes(body[: 2 * PART_BYTES + 100])
    assert cache.parts(stored, [0, 1, 2]) == {part: origin.whole(stored, part) for part in range(3)}
    assert sorted(origin.asked[3:]) == [("a", 1), ("a", 2)]


def test_what_is_harmed_at_its_origin_is_not_among_them(origin: Origin) -> None:
    cache, stored = cache_of(origin, 100), origin.add("a", 3 * PART_BYTES)
    path = origin.root / "a"
    body = bytearray(path.read_bytes())
    body[PART_BYTES + 5] ^= 1
    path.write_bytes(body)
    assert cache.parts(stored, [0, 1]).keys() == {0}
    path.unlink()
    assert cache.parts(stored, [0, 1, 2]).keys() == {0}
    assert cache.used_bytes() == PART_BYTES


@pytest.mark.parametrize("bound", [0, 0.5, 1, 2.5, 7])
def test_the_bound_holds_whatever_is_read(origin: Origin, bound: float) -> None:
    cache, chance = cache_of(origin, bound), random.Random(7)
    objects = [origin.add(f"o{i}", 3 * PART_BYTES + i) for i in range(5)]
    most = 0
    for _ in range(60):
        stored = chance.choice(objects)
        wanted = sorted(chance.sample(range(len(stored.crc32s)), chance.randint(1, 3)))
        found = cache.parts(stored, wanted)
        assert found == {part: origin.whole(stored, part) for part in wanted}
        most = max(most, cache.used_bytes())
        assert cache.used_bytes() <= bound * PART_BYTES
    assert most > 0 or bound < 1


def test_what_was_not_read_for_longest_goes_first(origin: Origin) -> None:
    cache = cache_of(origin, 3)
    a, b, c, d = (origin.add(name, PART_BYTES) for name in "abcd")
    for stored in (a, b, c):
        cache.parts(stored, [0])
        time.sleep(0.01)
    cache.parts(a, [0])
    time.sleep(0.01)
    cache.parts(d, [0])
    origin.asked.clear()
    for stored in (a, c, d):
        cache.parts(stored, [0])
    assert origin.asked == []
    cache.parts(b, [0])
    assert origin.asked == [("b", 0)]


def test_an_object_is_forgotten(origin: Origin) -> None:
    cache, a, b = cache_of(origin, 9), origin.add("a", PART_BYTES), origin.add("b", PART_BYTES)
    for stored in (a, b):
        cache.parts(stored, [0])
    cache.discard("a")
    cache.discard("a")
    assert cache.used_bytes() == PART_BYTES
    assert cache.discard_all_but(["b"]) == 0
    assert cache.discard_all_but([]) == 1 and cache.used_bytes() == 0


def test_an_error_of_the_store_is_told_and_holds_nobody_up(origin: Origin) -> None:
    stored = origin.add("a", 2 * PART_BYTES)

    def away(_name: str, _spans: Sequence[tuple[int, int]]) -> list[bytes]:
        raise ObjectStoreUnavailable("away")

    cache_of(origin, 9).parts(stored, [1])
    cut_off = PartCache(cache_of(origin, 9).root, 9 * PART_BYTES, away)
    with pytest.raises(ObjectStoreUnavailable):
        cut_off.parts(stored, [0, 1])
    assert cut_off.parts(stored, [1]) == {1: origin.whole(stored, 1)}
    assert cache_of(origin, 9).parts(stored, [0]).keys() == {0}


def test_a_folder_that_cannot_be_written_costs_no_answer(origin: Origin) -> None:
    stored, cache = origin.add("a", PART_BYTES), cache_of(origin, 9)
    cache.parts(stored, [0])
    (path,) = cache.root.glob("*.parts")
    path.unlink()
    path.mkdir()  # opening it for writing fails, for root too
    assert cache.parts(stored, [0]) == {0: origin.whole(stored, 0)}


READER = """
import sys, time
from pathlib import Path
from tests.index.test_part_cache import Origin
from worker.index.part_cache import PART_BYTES, PartCache, StoredObject
root, bound, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
origin = Origin.__new__(Origin)
origin.root, origin.asked = root / "origin", []
def slow(name, spans):
    time.sleep(0.05)
    with open(root / f"asked-{seed}", "a") as log:
        log.writelines(f"{name} {first // PART_BYTES}\\n" for first, _ in spans)
    return Origin.fetch(origin, name, spans)
cache = PartCache(root / "cache", bound, slow)
names = sorted(path.name for path in origin.root.iterdir())
from isal import isal_zlib
import random
chance = random.Random(seed)
for turn in range(20):
    name = names[turn % len(names)] if seed == 0 or bound > 10**7 else chance.choice(names)
    body = (origin.root / name).read_bytes()
    starts = range(0, len(body), PART_BYTES)
    crc32s = tuple(isal_zlib.crc32(body[at : at + PART_BYTES]) for at in starts)
    stored = StoredObject(name, len(body), crc32s)
    wanted = list(range(len(stored.crc32s)))
    found = cache.parts(stored, wanted)
    assert all(found[part] == origin.whole(stored, part) for part in wanted), name
"""


def readers(origin: Origin, bound: int) -> list[str]:
    """Four processes read all objects at the same time; what each of them fetched."""
    root = origin.root.parent
    running = [
        subprocess.Popen([sys.executable, "-c", READER, str(root), str(bound), str(seed)], cwd=REPO)
        for seed in range(4)
    ]
    watched, cache = threading.Event(), PartCache(root / "cache", bound, origin.fetch)
    over: list[int] = []

    def watch() -> None:
        while not watched.wait(0.005):
            if (used := cache.used_bytes()) > bound:
                over.append(used)

    thread = threading.Thread(target=watch)
    thread.start()
    codes = [process.wait() for process in running]
    watched.set()
    thread.join()
    assert codes == [0] * 4 and not over
    logs = (path.read_text().splitlines() for path in root.glob("asked-*"))
    return [line for log in logs for line in log]


def test_processes_fetch_once_what_several_want(origin: Origin) -> None:
    for name in "abc":
        origin.add(name, 2 * PART_BYTES)
    fetched = readers(origin, 64 * 1024 * 1024)
    assert sorted(fetched) == [f"{name} {part}" for name in "abc" for part in range(2)]


def test_the_bound_holds_while_processes_evict_each_others_parts(origin: Origin) -> None:
    for name in "abcd":
        origin.add(name, 2 * PART_BYTES)
    fetched = readers(origin, 5 * PART_BYTES)
    assert len(fetched) > 8, "some had to be fetched again"
