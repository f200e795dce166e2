"""Power cuts at any write, under ingest, erasure, reindex, repair, codes and seals: nothing
committed is lost, nothing erased comes back, and what Postgres says is what the files hold."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from models.repositories import videos as video_record
from models.video import VideoSegment
from tests.conftest import Services
from tests.crash_disk import CrashDisk, PowerCut
from tests.parts import fresh_context, run_jobs, sql
from tests.searching import flip, fresh
from worker import compacting, sealing
from worker.context import Context
from worker.erasure import camera_span, submit_erasure
from worker.generations import ensure_live_generation
from worker.leftovers import remove_strays
from worker.recording import PictureBatch, prepare_batch, record_batch
from worker.reindex import submit_reindex
from worker.repair import repair_index
from worker.verify import verify_index

pytestmark = pytest.mark.slow

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
CAMERAS = ("hall", "yard")
STEPS = 500
FREED = """update jobs set state = 'queued', lease_token = null, lease_until = null,
    run_after = now() where state = 'running'"""


def after_a_cut(disk: CrashDisk) -> tuple[bytes, bool]:
    """A file whose second write was not synced; whether one is there that was not at all."""
    folder = disk.root / "a"
    with disk.watched():
        folder.mkdir()
        descriptor = os.open(folder / "kept", os.O_RDWR | os.O_CREAT)
        os.pwrite(descriptor, b"k" * 2000, 0)
        os.fsync(descriptor)
        os.pwrite(descriptor, b"n" * 2000, 0)
        os.close(descriptor)
        for synced in (folder, disk.root):
            descriptor = os.open(synced, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
        (folder / "new").write_bytes(b"x" * 2000)
        with pytest.raises(PowerCut), disk.watched(0):
            os.sync()
    disk.cut_power()
    return (folder / "kept").read_bytes(), (folder / "new").exists()


def test_nothing_synced_is_lost_whatever_else_is(tmp_path: Path) -> None:
    """The model itself: it does lose what was not synced, and never what was."""
    lost = torn = entries = 0
    for seed in range(40):
        with closing(CrashDisk(tmp_path / f"d{seed}", seed)) as disk:
            kept, new_is_there = after_a_cut(disk)
        assert len(kept) == 2000 and set(kept) <= set(b"kn")
        torn += len(set(kept)) == 2
        lost += set(kept) == set(b"k")
        entries += not new_is_there
    assert torn > 10 and lost > 0 and 10 < entries < 30


class Power(RuleBasedStateMachine):
    """The store under a disk that fails. ``frames``: (camera, pts) of what was committed and not
    erased since."""

    open_context: Callable[[ExitStack, Path], Context]
    folder: Path
    total: ClassVar[dict[str, int]] = {"cuts": 0, "steps": 0, "machines": 0}

    @initialize(seed=st.integers(0, 2**32 - 1))
    def begin(self, seed: int) -> None:
        self.held = ExitStack()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.disk = self.held.enter_context(closing(CrashDisk(self.folder, seed)))
        self.context = type(self).open_context(self.held, self.folder)
        self.generation = ensure_live_generation(self.context)
        self.frames: set[tuple[str, int]] = set()
        self.next_pts = 0
        self.total["machines"] += 1

    def teardown(self) -> None:
        if hasattr(self, "held"):
            self.settle()
            with self.disk.watched():
                remove_strays(self.context, older_than_s=-1)
            self.check()
            self.holds_nothing_else()
            self.total["cuts"] += self.disk.cuts
            self.held.close()

    def cut(self) -> None:
        """Off and on: files as the disk left them, a fresh process, leases run out."""
        self.disk.cut_power()
        self.context = fresh(self.context)
        sql(self.context, FREED)

    def attempt(self, work: Callable[[], None], steps: int | None) -> bool:
        """Do it, unless the power fails at that step; whether it ended."""
        try:
            with self.disk.watched(steps):
                work()
        except PowerCut:
            self.cut()
            return False
        return True

    def settle(self) -> None:
        """What was ordered is carried out."""
        with self.disk.watched():
            run_jobs(self.context)

    def segment(self, camera: str) -> VideoSegment:
        with self.context.db.transaction() as session:
            known = video_record.ensure_camera(session, camera)
            segment, _ = video_record.ensure_segment(
                session,
                {
                    "camera_id": known.id,
                    "source_path": "made up",
                    "content_sha256": f"{self.next_pts:064x}",
                    "start_utc": START,
                    "start_source": "given",
                    "policy": {},
                    "policy_key": "x",
                },
            )
        return segment

    steps = st.one_of(st.none(), st.integers(0, 30))

    @rule(camera=st.sampled_from(CAMERAS), count=st.integers(1, 3), steps=steps)
    def ingest(self, camera: str, count: int, steps: int | None) -> None:
        self.total["steps"] += 1
        pts = list(range(self.next_pts, self.next_pts + count))
        segment = self.segment(camera)
        self.next_pts += count
        rng = np.random.default_rng(pts[0])
        imgs_hwc = [rng.integers(0, 255, (32, 32, 3), dtype=np.uint8) for _ in pts]
        times = [START + timedelta(seconds=at) for at in pts]

        def work() -> None:
            live = ensure_live_generation(self.context)
            backbone = self.context.backbone(live.backbone)
            prepared = prepare_batch(
                self.context, backbone, PictureBatch(times, pts, imgs_hwc, imgs_hwc)
            )
            with ExitStack() as held, self.context.db.transaction() as session:
                record_batch(self.context, session, segment, live, prepared, held)

        if self.attempt(work, steps):
            self.frames |= {(camera, at) for at in pts}

    @precondition(lambda self: self.frames)
    @rule(
        camera=st.sampled_from(CAMERAS), share=st.floats(0, 1), width=st.integers(1, 6), steps=steps
    )
    def erase(self, camera: str, share: float, width: int, steps: int | None) -> None:
        self.total["steps"] += 1
        if not any(name == camera for name, _ in self.frames):
            return
        first = int(share * self.next_pts)
        span, _ = camera_span(
            self.context,
            camera,
            START + timedelta(seconds=first),
            START + timedelta(seconds=first + width),
        )
        submit_erasure(self.context, span)
        self.attempt(lambda: run_jobs(self.context), steps)
        self.settle()
        self.frames -= {(camera, at) for at in range(first, first + width)}

    @precondition(lambda self: len(self.frames) > 1)
    @rule(backbone=st.sampled_from(["tiny-a", "tiny-b"]), steps=steps)
    def reindex(self, backbone: str, steps: int | None) -> None:
        self.total["steps"] += 1
        submit_reindex(self.context, backbone)
        self.attempt(lambda: run_jobs(self.context), steps)
        self.settle()

    @precondition(lambda self: self.frames)
    @rule(steps=steps)
    def code(self, steps: int | None) -> None:
        self.total["steps"] += 1
        compacting.submit_due(self.context)
        self.attempt(lambda: run_jobs(self.context), steps)
        self.settle()

    @precondition(lambda self: self.frames)
    @rule(steps=steps)
    def seal(self, steps: int | None) -> None:
        self.total["steps"] += 1
        sealing.submit_due(self.context)
        self.attempt(lambda: run_jobs(self.context), steps)
        self.settle()

    @precondition(lambda self: self.frames)
    @rule(at=st.integers(0, 10**6), steps=steps)
    def rot(self, at: int, steps: int | None) -> None:
        """A bit of the live generation flips on the disk, and the index is repaired."""
        self.total["steps"] += 1
        self.settle()
        live = ensure_live_generation(self.context)
        folder = self.context.index.generation_folder(live.id)
        query = "select id, revision from shards where generation_id = %s order by id"
        names = [
            f"s{one}.{two}".removesuffix(".0") for one, two in sql(self.context, query, live.id)
        ]
        files = [path for name in names for path in sorted((folder / name).glob("*.[vr]*"))]
        path = files[at % len(files)]
        flip(path, at % path.stat().st_size)
        self.disk._synced(path)
        self.attempt(self.repaired, steps)
        with self.disk.watched():
            self.repaired()

    def repaired(self) -> None:
        assert repair_index(self.context).problems == ()

    def holds_nothing_else(self) -> None:
        """Every folder of vectors and every picture is one that a row names, or the former files of
        a repaired shard, which a disk may bring back."""
        current = dict(sql(self.context, "select id, revision from shards"))
        for folder in self.context.index.root.glob("g*/s*"):
            shard_id, _, revision = folder.name.removeprefix("s").partition(".")
            assert int(revision or 0) <= current[int(shard_id)], folder
        pictures = {sha for (sha,) in sql(self.context, "select picture_sha256 from frames")}
        assert {path.stem for path in self.context.pictures.root.rglob("*.jpg")} == pictures

    @rule()
    def power_cut(self) -> None:
        self.total["steps"] += 1
        self.cut()

    @invariant()
    def check(self) -> None:
        if not hasattr(self, "held"):
            return
        rows = sql(
            self.context, "select c.name, f.pts from frames f join cameras c on c.id = f.camera_id"
        )
        assert {(name, pts) for name, pts in rows} == self.frames
        assert verify_index(fresh(self.context)).problems == ()


@pytest.mark.timeout(900)  # real work on a machine that may be busy
def test_power_cuts_at_any_step(
    services: Services, template_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compacting, "MIN_FRAMES", 2)
    monkeypatch.setattr(compacting, "MIN_LAG", 1)
    monkeypatch.setattr(sealing, "MIN_FRAMES", 2)
    monkeypatch.setattr(sealing, "BLOCKS_AT_ONCE", 2)
    monkeypatch.setattr(sealing, "seal_distance", lambda _name: 0.2)

    def open_context(held: ExitStack, folder: Path) -> Context:
        made = held.enter_context(
            fresh_context(
                services.database_url,
                template_database,
                folder,
                backbone="tiny-a",
                commit_batch=2,
                shard_span_s=60,
                seal_after_s=0.0,
                job_lease_s=0.3,
                job_max_attempts=100,
            )
        )
        return replace(made, ring=lambda _job_id, _kind: None)

    machine = type(
        "Machine",
        (Power,),
        {"open_context": staticmethod(open_context), "folder": tmp_path / "disk"},
    )
    while Power.total["steps"] < STEPS:
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=8,
                stateful_step_count=50,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                phases=[Phase.generate],  # a failing example is printed as it is: shrinking is slow
                print_blob=True,
            ),
        )
    assert Power.total["cuts"] > STEPS // 5, Power.total
