"""Ingest of real footage: what is recorded, once, and what becomes of files that are no good."""

from __future__ import annotations

import itertools
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.repositories import index as index_record
from models.repositories import jobs as job_record
from models.repositories import videos as video_record
from models.schema import VideoSegment
from models.session import Session
from tests.conftest import Services
from tests.parts import (
    HANDLERS,
    fresh_context,
    ingested,
    job,
    loaded,
    loaded_backbone,
    run_jobs,
    sql,
    with_settings,
)
from tests.video.clips import FPS, make_audio, make_clip
from worker.accepting import segments
from worker.accepting.segments import Submission, hash_file
from worker.backbones.base import Backbone
from worker.context import Context
from worker.core.backbone_spec import BackboneSpec
from worker.core.sampling import IntervalPolicy
from worker.core.search_params import SearchParams
from worker.core.types import Descriptors, ImageArray
from worker.errors import GenerationSwitched, InputInvalid, LeaseLost, VideoUnreadable
from worker.generations import ensure_live_generation
from worker.index.layout import HEADER_BYTES
from worker.ingest import run_ingest, submit_file
from worker.jobs import Handler, Lease, run_job
from worker.pinning import pin_shards, spec_of
from worker.recording import PictureBatch, bucket_of, prepare_batch, record_batch
from worker.verify import verify_index
from worker.video import decoding

START = datetime(2026, 3, 1, 11, 59, 55, tzinfo=UTC)


@pytest.fixture(scope="module")
def street(
    services: Services,
    template_database: str,
    tmp_path_factory: pytest.TempPathFactory,
    footage: dict[str, Path],
) -> Iterator[Context]:
    """Ten seconds of a street, one frame a second, with the default backbone."""
    folder = tmp_path_factory.mktemp("street")
    with fresh_context(services.database_url, template_database, folder) as made:
        ingested(made, footage["bikes"], "street", 1.0, start_utc=START)
        yield made


@pytest.fixture
def tiny(context: Context) -> Context:
    """A fresh context whose backbone is small and fast."""
    return loaded(with_settings(context, backbone="tiny-a"))


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """60 numbered pictures at 25 a second."""
    return make_clip(tmp_path / "numbered.mp4")


def submit(context: Context, path: Path, camera: str = "gate", every_s: float = 0.2) -> Submission:
    return submit_file(context, path, camera, IntervalPolicy(every_s), START)


def frames(context: Context) -> list[tuple[Any, ...]]:
    return sql(context, "select pts, t_utc, picture_sha256, h_px, w_px from frames order by pts")


def segment_row(context: Context, segment_id: int) -> VideoSegment:
    with context.db.transaction() as session:
        found = video_record.find_segment(session, segment_id)
    assert found is not None
    return found


def stored_rows(context: Context) -> dict[datetime, tuple[np.ndarray, np.ndarray]]:
    """Global and patch descriptors of the live generation by frame time."""
    generation = ensure_live_generation(context)
    with context.db.transaction() as session:
        shards = pin_shards(session, context.index, context.f_maps, generation, SearchParams())
    return {
        datetime.fromtimestamp(t_epoch_s, UTC): (
            shard.read("global", [block])[0],
            shard.read("patch", [block])[0],
        )
        for shard in shards
        for block, t_epoch_s in enumerate(shard.t_epoch_s)
    }


def test_frames_have_exact_times_and_the_clips_pictures(street: Context) -> None:
    rows = frames(street)
    assert [pts for pts, *_ in rows] == [12_800 * second for second in range(10)]
    assert [t_utc for _, t_utc, *_ in rows] == [START + timedelta(seconds=s) for s in range(10)]
    assert {(h_px, w_px) for *_, h_px, w_px in rows} == {(272, 640)}
    for _, _, sha256, h_px, w_px in rows:
        assert street.pictures.load(sha256).shape == (h_px, w_px, 3)


def test_rows_are_frames_times_cells(street: Context) -> None:
    """The paper's own count lost a token per picture (design, 4.1)."""
    generation = ensure_live_generation(street)
    cells = spec_of(generation).grid.cells
    assert cells == 256
    shards = sql(street, "select frame_count, row_count, bucket_utc from shards order by id")
    assert [(n, rows) for n, rows, _ in shards] == [(5, 5 * cells), (5, 5 * cells)]
    assert [bucket for *_, bucket in shards] == [
        datetime(2026, 3, 1, 11, tzinfo=UTC),
        datetime(2026, 3, 1, 12, tzinfo=UTC),
    ]
    runs = sql(street, "select sum(row_count), count(*), count(distinct frame_id) from f_map_runs")
    assert runs == [(10 * cells, 10, 10)]
    for path in (street.settings.data_dir / "index").glob("*/*/patch.vec"):
        assert path.stat().st_size == HEADER_BYTES + 5 * cells * 192


def test_stored_descriptors_are_the_backbones(street: Context, footage: dict[str, Path]) -> None:
    """Of the pictures at those times, decoded independently."""
    import av

    with av.open(str(footage["bikes"])) as video:
        picture = next(itertools.islice(video.decode(video=0), 175, None))
    img_hwc = np.asarray(picture.to_ndarray(format="rgb24"), dtype=np.uint8)
    expected = loaded_backbone("efficientnet-lite0").embed([img_hwc])
    global_d, patches_cd = stored_rows(street)[START + timedelta(seconds=7)]
    assert float(global_d @ expected.global_nd[0]) > 0.995
    cosine = np.einsum("cd,cd->c", patches_cd, expected.patches_ncd[0])
    assert np.median(cosine) > 0.98
    norms = np.linalg.norm(patches_cd, axis=1)
    np.testing.assert_allclose(norms, 1.0, atol=2e-3)


def test_the_segment_says_what_the_file_is(street: Context) -> None:
    (segment_id,) = sql(street, "select id from video_segments")[0]
    segment = segment_row(street, segment_id)
    assert (segment.outcome, segment.frame_count, segment.frames_decoded) == ("complete", 10, 250)
    assert (segment.codec, segment.h_px, segment.w_px) == ("h264", 272, 640)
    assert (segment.frames_expected, segment.decode_errors, segment.duration_s) == (250, 0, 10.0)
    assert (segment.start_utc, segment.start_source) == (START, "given")
    assert segment.finished_at is not None


def test_the_same_submission_again_changes_nothing(
    street: Context, footage: dict[str, Path], tmp_path: Path
) -> None:
    """Also from another path and with the time written in another zone."""
    copy = shutil.copy(footage["bikes"], tmp_path / "copy.mp4")
    zoned = START.astimezone(timezone(timedelta(hours=5)))
    known = sql(street, "select id, job_id from video_segments")
    for path, start in ((footage["bikes"], START), (Path(copy), zoned)):
        made = submit_file(street, path, " street ", IntervalPolicy(1), start)
        assert [(made.segment_id, uuid.UUID(made.job_id))] == known
        assert not made.is_new
        run_job(street, uuid.UUID(made.job_id), HANDLERS)
    assert sql(street, "select count(*) from jobs where kind = 'ingest'") == [(1,)]
    assert sql(street, "select count(*) from frames") == [(10,)]
    assert sql(street, "select sum(frame_count) from shards") == [(10,)]


def test_verify_finds_nothing(street: Context) -> None:
    report = verify_index(street)
    assert report.problems == ()
    assert (report.frames, report.shards, report.rows, report.pictures) == (10, 2, 2560, 10)


def test_another_camera_time_or_policy_is_another_segment(tiny: Context, clip: Path) -> None:
    first = submit(tiny, clip)
    others = [
        submit(tiny, clip, camera="yard"),
        submit(tiny, clip, every_s=0.4),
        submit_file(tiny, clip, "gate", IntervalPolicy(0.2), START + timedelta(hours=1)),
    ]
    assert all(other.is_new for other in others)
    assert len({first.segment_id, *(other.segment_id for other in others)}) == 4
    run_jobs(tiny)
    assert sql(tiny, "select count(*) from frames") == [(12 + 12 + 6 + 12,)]
    assert verify_index(tiny).problems == ()


def test_an_interrupted_ingest_gives_what_an_uninterrupted_one_gives(
    tiny: Context,
    clip: Path,
    services: Services,
    template_database: str,
    tmp_path: Path,
    rung: list[tuple[uuid.UUID, str]],
) -> None:
    """One slice per commit, so that decoding starts anew behind every fourth frame."""
    sliced = with_settings(tiny, job_slice_s=0.0)
    made = submit(sliced, clip, every_s=0.08)
    run_jobs(sliced)
    assert len(rung) > 5
    assert job(sliced, made.job_id).state == "done"
    with fresh_context(
        services.database_url, template_database, tmp_path / "whole", backbone="tiny-a"
    ) as whole:
        ingested(whole, clip, "gate", 0.08, start_utc=START)
        assert frames(sliced) == frames(whole)
        expected = stored_rows(whole)
    assert len(frames(sliced)) == 30
    found = stored_rows(sliced)
    assert found.keys() == expected.keys()
    for t_utc, (global_d, patches_cd) in expected.items():
        np.testing.assert_allclose(found[t_utc][0], global_d, atol=2e-3)
        np.testing.assert_allclose(found[t_utc][1], patches_cd, atol=2e-3)
    segment = segment_row(sliced, made.segment_id)
    assert (segment.frame_count, segment.frames_decoded) == (30, 60)
    assert segment.outcome == "complete"
    assert verify_index(sliced).problems == ()


def test_a_batch_that_was_written_but_not_committed_does_not_count(
    tiny: Context, clip: Path, footage: dict[str, Path]
) -> None:
    """As after a kill between the append and the commit: bytes lie there, no row speaks of them."""
    made = submit(tiny, clip)
    generation = ensure_live_generation(tiny)
    segment = segment_row(tiny, made.segment_id)
    img_hwc = np.full((32, 32, 3), 77, np.uint8)
    batch = PictureBatch([START], [0], [img_hwc], [img_hwc])
    prepared = prepare_batch(tiny, tiny.backbone("tiny-a"), batch)
    with (
        pytest.raises(InterruptedError),
        ExitStack() as held,
        tiny.db.transaction() as session,
    ):
        record_batch(tiny, session, segment, generation, prepared, held)
        raise InterruptedError
    assert frames(tiny) == []
    run_jobs(tiny)
    assert len(frames(tiny)) == 12
    assert verify_index(tiny).problems == ()


def test_a_batch_recorded_again_adds_nothing(tiny: Context, clip: Path) -> None:
    made = submit(tiny, clip)
    generation = ensure_live_generation(tiny)
    segment = segment_row(tiny, made.segment_id)
    img_hwc = np.full((32, 32, 3), 77, np.uint8)
    batch = PictureBatch(
        [START, START + timedelta(seconds=1)], [0, 9], [img_hwc] * 2, [img_hwc] * 2
    )
    prepared = prepare_batch(tiny, tiny.backbone("tiny-a"), batch)
    ids = []
    for _ in range(2):
        with ExitStack() as held, tiny.db.transaction() as session:
            ids.append(record_batch(tiny, session, segment, generation, prepared, held))
    assert ids[0] == ids[1]
    assert sql(tiny, "select frame_count, row_count from shards") == [(2, 32)]
    assert verify_index(tiny).problems == ()


def test_a_worker_that_lost_its_job_records_nothing(tiny: Context, clip: Path) -> None:
    made = submit(tiny, clip)
    leases = []
    for _ in range(2):
        with tiny.db.transaction() as session:
            claimed = job_record.claim(session, uuid.UUID(made.job_id), 30)
        assert claimed is not None
        leases.append(Lease(tiny, claimed))
        sql(tiny, "update jobs set lease_until = now() - interval '1 s'")
    slow, current = leases
    with pytest.raises(LeaseLost, match=made.job_id):
        run_ingest(tiny, slow.job, slow)
    assert frames(tiny) == []
    assert segment_row(tiny, made.segment_id).resume_pts is None
    assert run_ingest(tiny, current.job, current) == "finished"
    assert len(frames(tiny)) == 12
    with pytest.raises(LeaseLost):
        run_ingest(tiny, slow.job, slow)
    assert len(frames(tiny)) == 12
    assert verify_index(tiny).problems == ()


class SwitchingBackbone:
    """The given backbone; before its first picture another generation is made live."""

    def __init__(self, real: Backbone, context: Context) -> None:
        self._real = real
        self._context = context
        self._switched = False

    @property
    def spec(self) -> BackboneSpec:
        return self._real.spec

    def embed(self, imgs_hwc: Sequence[ImageArray]) -> Descriptors:
        if not self._switched:
            self._switched = True
            with self._context.db.transaction() as session:
                index_record.lock_generations(session, exclusive=True)
                live = index_record.live_generation(session)
                assert live is not None
                index_record.set_generation_state(session, live.id, "retired")
                index_record.create_generation(
                    session,
                    backbone="tiny-b",
                    spec_hash=loaded_backbone("tiny-b").spec.spec_hash,
                    spec=loaded_backbone("tiny-b").spec.to_json(),
                    codec="fp32",
                    state="live",
                )
        return self._real.embed(imgs_hwc)


def test_a_generation_switched_under_a_batch_makes_it_be_redone(tiny: Context, clip: Path) -> None:
    switching = SwitchingBackbone(loaded_backbone("tiny-a"), tiny)
    named: dict[str, Backbone] = {"tiny-a": switching}
    context = replace(tiny, backbone=lambda name: named.get(name) or loaded_backbone(name))
    made = submit(context, clip)
    run_job(context, uuid.UUID(made.job_id), HANDLERS)
    put_off = job(context, made.job_id)
    assert (put_off.state, put_off.retry_code) == ("queued", GenerationSwitched.code)
    assert frames(context) == []
    run_jobs(context)
    assert job(context, made.job_id).state == "done"
    indexed = sql(
        context,
        "select g.backbone, sum(s.frame_count) from shards s"
        " join index_generations g on g.id = s.generation_id group by 1",
    )
    assert indexed == [("tiny-b", 12)]
    assert verify_index(context).problems == ()


def empty(path: Path, _footage: dict[str, Path]) -> None:
    path.write_bytes(b"")


def text(path: Path, _footage: dict[str, Path]) -> None:
    path.write_text("dear sir\n" * 1000)


def cut_in_two(path: Path, footage: dict[str, Path]) -> None:
    content = footage["bikes"].read_bytes()
    path.write_bytes(content[: len(content) // 2])


def noise(path: Path, _footage: dict[str, Path]) -> None:
    path.write_bytes(np.random.default_rng(1).bytes(200_000))


def sound_only(path: Path, _footage: dict[str, Path]) -> None:
    make_audio(path.with_suffix(".m4a")).rename(path)


@pytest.mark.parametrize("make", [empty, text, cut_in_two, noise, sound_only])
def test_a_file_that_is_no_video_is_a_recorded_failure_and_the_next_job_runs(
    tiny: Context, tmp_path: Path, footage: dict[str, Path], clip: Path, make: Callable[..., None]
) -> None:
    path = tmp_path / "bad.mp4"
    make(path, footage)
    bad = submit(tiny, path)
    good = submit(tiny, clip)
    run_jobs(tiny)
    failed = job(tiny, bad.job_id)
    assert (failed.state, failed.error_code) == ("failed", "video_invalid")
    assert str(path) in str(failed.error_detail)
    segment = segment_row(tiny, bad.segment_id)
    assert (segment.outcome, segment.frame_count) == ("failed", 0)
    assert job(tiny, good.job_id).state == "done"
    assert sql(tiny, "select count(*) from frames") == [(12,)]


def test_a_cut_off_video_is_partial_and_searchable_up_to_there(
    tiny: Context, tmp_path: Path
) -> None:
    """MPEG-TS has no table at its end: what is there can be read."""
    whole = make_clip(
        tmp_path / "whole.ts", container="mpegts", options={"x264-params": "bframes=0"}
    )
    path = tmp_path / "cut.mkv"
    make_clip(path, 200)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 6 // 10])
    made = submit(tiny, path)
    whole_made = submit(tiny, whole)
    run_jobs(tiny)
    segment = segment_row(tiny, made.segment_id)
    assert job(tiny, made.job_id).state == "done"
    assert segment.outcome == "partial"
    assert 10 < segment.frame_count < 200 / FPS / 0.2
    assert segment_row(tiny, whole_made.segment_id).outcome == "complete"


def test_a_failed_file_can_be_submitted_again_once_it_is_mended(
    tiny: Context, tmp_path: Path, clip: Path
) -> None:
    """Its picture was unreadable for a while: the same file, hence the same segment."""
    path = Path(shutil.copy(clip, tmp_path / "moved.mp4"))
    made = submit(tiny, path)
    path.unlink()
    run_jobs(tiny)
    failed = job(tiny, made.job_id)
    assert (failed.state, failed.error_code) == ("failed", "video_unreadable")
    again = submit(tiny, clip)
    assert again.segment_id == made.segment_id
    assert again.job_id != made.job_id
    assert again.is_new
    run_jobs(tiny)
    segment = segment_row(tiny, made.segment_id)
    assert (segment.outcome, segment.frame_count) == ("complete", 12)
    assert str(segment.job_id) == again.job_id


def test_paths_that_cannot_be_read_are_refused_at_once(tiny: Context, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    badly_named = tmp_path / os.fsdecode(b"caf\xe9.mp4")
    badly_named.write_bytes(b"x")
    for path in (tmp_path / "missing.mp4", tmp_path, pipe, Path("/dev/zero"), badly_named):
        with pytest.raises(VideoUnreadable, match="name"):
            submit(tiny, path)
    assert sql(tiny, "select count(*) from jobs") == [(0,)]
    assert sql(tiny, "select count(*) from cameras") == [(0,)]


@pytest.mark.parametrize("name", ["", "   ", "x" * 201, "a\x00b", "a\nb", "\udce9"])
def test_camera_names_that_cannot_be_stored_are_refused(
    tiny: Context, clip: Path, name: str
) -> None:
    with pytest.raises(InputInvalid, match="camera name"):
        submit(tiny, clip, camera=name)


@pytest.mark.parametrize("name", ["Tor 3\u00a0b", "x" * 200, "门口", "'; drop table cameras; --"])
def test_camera_names_in_any_script_are_kept(tiny: Context, clip: Path, name: str) -> None:
    submit(tiny, clip, camera=name)
    assert sql(tiny, "select name from cameras") == [(name,)]


def test_a_start_time_without_a_zone_is_refused(tiny: Context, clip: Path) -> None:
    with pytest.raises(InputInvalid, match="time zone"):
        submit_file(tiny, clip, "gate", IntervalPolicy(1), datetime(2026, 1, 1))  # noqa: DTZ001


def test_without_a_start_time_the_files_own_is_taken(tiny: Context, tmp_path: Path) -> None:
    dated = make_clip(tmp_path / "dated.mp4", 10, creation_time="2025-05-04T03:02:01Z")
    undated = make_clip(tmp_path / "undated.mp4", 10)
    os.utime(undated, (1_700_000_000.7, 1_700_000_000.7))
    found = []
    for path in (dated, undated):
        made = submit_file(tiny, path, "gate", IntervalPolicy(1))
        segment = segment_row(tiny, made.segment_id)
        found.append((segment.start_source, segment.start_utc))
    assert found == [
        ("container", datetime(2025, 5, 4, 3, 2, 1, tzinfo=UTC)),
        # Modified last when its recording ended: its ten pictures at 25 a second are taken off.
        ("file-mtime", datetime.fromtimestamp(1_700_000_000 - 0.4, UTC)),
    ]


def test_a_touched_copy_is_the_same_recording(tiny: Context, clip: Path, tmp_path: Path) -> None:
    first = submit_file(tiny, clip, "gate", IntervalPolicy(1))
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(clip.read_bytes())
    os.utime(copy, (1_600_000_000, 1_600_000_000))
    again = submit_file(tiny, copy, "gate", IntervalPolicy(1))
    assert (again.segment_id, again.is_new) == (first.segment_id, False)


def test_a_file_replaced_after_it_was_accepted_is_not_indexed(
    tiny: Context, clip: Path, tmp_path: Path
) -> None:
    path = tmp_path / "rolling.mp4"
    path.write_bytes(clip.read_bytes())
    made = submit(tiny, path)
    make_clip(path, 3)
    run_job(tiny, uuid.UUID(made.job_id), HANDLERS)
    failed = job(tiny, made.job_id)
    assert (failed.state, failed.error_code) == ("failed", "video_unreadable")
    assert "changed" in str(failed.error_detail)
    assert frames(tiny) == []


@pytest.mark.parametrize("harm", ["written to", "removed"])
def test_a_file_that_changes_while_it_is_accepted_is_refused(
    tiny: Context, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    """The hash would be that of its beginning, and the finished file another recording."""
    growing = tmp_path / "growing.mp4"
    shutil.copy(clip, growing)

    def hash_meanwhile(path: Path) -> str:
        sha256 = hash_file(path)
        if harm == "removed":
            growing.unlink()
        else:
            growing.write_bytes(clip.read_bytes() + b"more")
        return sha256

    monkeypatch.setattr(segments, "hash_file", hash_meanwhile)
    with pytest.raises(VideoUnreadable):
        submit_file(tiny, growing, "gate", IntervalPolicy(1))


def bad_decoder(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """Every decoding process does ``what`` from now on (tests/video/bad_decoder.py)."""
    real = decoding.child_command

    def command(fd: int) -> list[str]:
        program = [sys.executable, "-P", "-m", "tests.video.bad_decoder", what]
        return [*program, *real(fd)[-2:]]

    monkeypatch.setattr(decoding, "child_command", command)


@pytest.mark.parametrize(
    ("what", "code"), [("7:killed", "video_killed_decoder"), ("7:asleep", "video_too_slow")]
)
def test_a_file_that_ends_its_decoder_half_way_is_partial_and_never_tried_again(
    tiny: Context, clip: Path, monkeypatch: pytest.MonkeyPatch, what: str, code: str
) -> None:
    small = with_settings(tiny, commit_batch=4, decode_deadline_s=1.0)
    made = submit(small, clip)
    with monkeypatch.context() as patched:
        bad_decoder(patched, what)
        run_job(small, uuid.UUID(made.job_id), HANDLERS)
    failed = job(small, made.job_id)
    assert (failed.state, failed.error_code) == ("failed", code)
    assert str(clip) in str(failed.error_detail)
    segment = segment_row(small, made.segment_id)
    assert (segment.outcome, segment.frame_count) == ("partial", 7)
    assert [pts for pts, *_ in frames(small)] == [2560 * number for number in range(7)]
    # Something else may have killed it: the same file again goes on behind what is there.
    again = submit(small, clip)
    assert (again.is_new, again.segment_id) == (True, made.segment_id)
    run_jobs(small)
    segment = segment_row(small, made.segment_id)
    assert (segment.outcome, segment.frame_count, segment.frames_decoded) == ("complete", 12, 60)
    assert verify_index(small).problems == ()


def test_a_file_that_ends_its_decoder_at_once_is_failed_and_the_next_job_runs(
    tiny: Context, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = submit(tiny, clip)
    with monkeypatch.context() as patched:
        bad_decoder(patched, "0:crashed")
        undated = make_clip(tmp_path / "undated.mp4", 5)
        submit_file(tiny, undated, "other", IntervalPolicy(1))  # the command line looks too
        run_job(tiny, uuid.UUID(made.job_id), HANDLERS)
    assert job(tiny, made.job_id).error_code == "video_killed_decoder"
    segment = segment_row(tiny, made.segment_id)
    assert (segment.outcome, segment.frame_count) == ("failed", 0)
    run_jobs(tiny)
    assert sql(tiny, "select count(*) from frames") == [(1,)]


def test_a_count_of_pictures_that_is_wrong_is_told(tiny: Context, tmp_path: Path) -> None:
    """Ten pictures of no bytes: nothing fails, and ten are missing."""
    path = make_clip(tmp_path / "a.mp4", 60, codec="mpeg4")
    content = bytearray(path.read_bytes())
    sizes = content.index(b"stsz") + 16
    content[sizes + 80 : sizes + 120] = bytes(40)
    path.write_bytes(content)
    made = submit(tiny, path)
    run_jobs(tiny)
    segment = segment_row(tiny, made.segment_id)
    assert (segment.outcome, segment.frames_expected) == ("partial", 60)
    assert segment.frames_decoded < 60
    assert job(tiny, made.job_id).progress == {
        "frames": segment.frame_count,
        "decoded": segment.frames_decoded,
        "expected": 60,
    }


def test_joined_recordings_whose_times_start_again_are_partial(
    tiny: Context, tmp_path: Path
) -> None:
    once = make_clip(tmp_path / "once.ts", 40)
    joined = tmp_path / "joined.ts"
    joined.write_bytes(once.read_bytes() * 2)
    made = submit(tiny, joined)
    run_jobs(tiny)
    assert segment_row(tiny, made.segment_id).outcome == "partial"


def test_below_the_free_space_floor_the_job_is_kept(tiny: Context, clip: Path) -> None:
    full = with_settings(tiny, min_free_bytes=2**62)
    made = submit(full, clip)
    for _ in range(tiny.settings.job_max_attempts + 2):
        run_job(full, uuid.UUID(made.job_id), HANDLERS)
        waiting = job(full, made.job_id)
        assert (waiting.state, waiting.retry_code, waiting.attempts) == (
            "queued",
            "storage_full",
            0,
        )
        assert "RIS_MIN_FREE_BYTES" in str(waiting.retry_detail)
        sql(tiny, "update jobs set run_after = now()")
    assert frames(tiny) == []
    assert not (tiny.settings.data_dir / "index").exists()
    run_jobs(tiny)
    assert job(tiny, made.job_id).state == "done"
    assert len(frames(tiny)) == 12


def test_a_segment_that_vanished_is_not_found(tiny: Context, clip: Path) -> None:
    with tiny.db.transaction() as session:
        job_id = job_record.submit(session, "ingest", "ingest", {"segment_id": 999})

    def no_note(_session: Session, _job: Any, _code: str) -> None: ...

    run_job(tiny, job_id, {"ingest": Handler(run_ingest, no_note)})
    assert job(tiny, job_id).error_code == "not_found"


@pytest.mark.parametrize(
    ("t_utc", "span_s", "start"),
    [
        ("2026-03-01T11:59:59.999999", 3600, "2026-03-01T11:00:00"),
        ("2026-03-01T12:00:00", 3600, "2026-03-01T12:00:00"),
        ("1969-12-31T23:59:59.5", 60, "1969-12-31T23:59:00"),
        ("2026-03-01T12:00:00", 86_400, "2026-03-01T00:00:00"),
    ],
)
def test_buckets_are_half_open_spans_from_the_epoch(t_utc: str, span_s: int, start: str) -> None:
    def utc(text: str) -> datetime:
        return datetime.fromisoformat(text).replace(tzinfo=UTC)

    assert bucket_of(utc(t_utc), span_s) == utc(start)
