"""Live feeds end to end: a camera on loopback, real slices, real rows."""

from __future__ import annotations

import functools
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import psycopg
import pytest

from models.repositories import feeds as feed_record
from tests.conftest import Services, psycopg_url
from tests.feed_faults import wrong_gaps
from tests.feeding import (
    SlowBackbone,
    Worker,
    feed_context,
    feed_worker,
    frame_times,
    gap_rows,
    until,
)
from tests.parts import job, sql, with_settings
from tests.rtsp_server import Camera
from worker.accepting.cameras import set_mask
from worker.accepting.desk import COMMAND_LINE
from worker.context import Context
from worker.core.sampling import ChangePolicy, IntervalPolicy, KeyframePolicy
from worker.core.types import Box
from worker.embedded.postgres import postgres_binary
from worker.embedded.postgres_tools import dump_database
from worker.erasure import camera_span, submit_erasure
from worker.errors import AlreadyThere, NotFound
from worker.feeds import add_feed, pause_feed, reconcile, remove_feed, resume_feed
from worker.video.address import redacted
from worker.video.probe import probe

EVERY_S = 0.5


@pytest.fixture(scope="module")
def shared(
    services: Services, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Context]:
    folder = tmp_path_factory.mktemp("feeds")
    with feed_context(services, template_database, folder) as made:
        yield made


@pytest.fixture
def context(shared: Context) -> Context:
    sql(shared, "truncate jobs, cameras cascade")
    return shared


@dataclass(frozen=True)
class Web:
    """A folder that is served by HTTP."""

    url: str
    folder: Path


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    folder = tmp_path / "web"
    folder.mkdir()
    handler = functools.partial(_Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Web(f"http://127.0.0.1:{server.server_port}", folder)
        server.shutdown()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


def write_ts(path: Path, frames: int) -> None:
    """MPEG-TS at 10 frames a second, a keyframe each second."""
    with av.open(str(path), "w", format="mpegts") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 160, 128, "yuv420p"
        stream.gop_size = 10
        stream.codec_context.time_base = Fraction(1, 10)
        for number in range(frames):
            img_hwc = np.full((128, 160, 3), number * 5 % 255, np.uint8)
            frame = av.VideoFrame.from_ndarray(img_hwc, format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def with_index_first(source: Path, target: Path) -> None:
    """A copy that can be read without seeking: the small server here knows no ranges."""
    options = {"movflags": "faststart"}
    with av.open(str(source)) as read, av.open(str(target), "w", options=options) as written:
        stream = read.streams.video[0]
        copy = written.add_stream_from_template(stream)
        for packet in read.demux(stream):
            if packet.dts is not None:
                packet.stream = copy
                written.mux(packet)


def dropped(context: Context, camera: str) -> dict[str, int]:
    """Frames of a camera that were dropped, by reason."""
    with context.db.transaction() as session:
        return {reason: frames for _, reason, frames in feed_record.drops(session, camera)}


def test_a_camera_is_indexed_slice_after_slice_over_one_connection(context: Context) -> None:
    with Camera() as camera, feed_worker(context):
        add_feed(context, "yard", camera.url, IntervalPolicy(EVERY_S))
        until(lambda: len(frame_times(context, "yard")) >= 14, what="14 frames")
        assert camera.connections == 1
    times = frame_times(context, "yard")
    gaps_s = sorted(after - before for before, after in pairwise(times))
    # In the slot it came; a busy machine may be late with some.
    assert all(abs(gap_s - EVERY_S) < 0.25 for gap_s in gaps_s[2:-3]), gaps_s
    assert abs(times[-1] - time.time()) < 5
    (slices,) = sql(context, "select count(*) from jobs")
    assert slices == (1,)


def test_of_two_workers_one_keeps_the_connection(context: Context) -> None:
    """Bells go to whoever is free; the process that has the connection takes the next slice."""
    with Camera() as camera, feed_worker(context) as first:
        other = Worker(context, first.bells, slots=4)
        try:
            add_feed(context, "gate", camera.url, IntervalPolicy(EVERY_S))
            until(lambda: len(frame_times(context, "gate")) >= 16, what="16 frames")
        finally:
            other.stop()
        # One that a busy machine let stall is a gap; handing over without one is not to happen.
        lost = [gap for gap in gap_rows(context, "gate") if gap[2] != "connecting"]
        assert camera.connections <= 1 + len(lost)
    assert wrong_gaps(context, "gate", EVERY_S) == []


def test_a_worker_that_stops_hands_over_at_once(context: Context) -> None:
    with Camera() as camera:
        with feed_worker(context):
            add_feed(context, "door", camera.url, IntervalPolicy(EVERY_S))
            until(lambda: len(frame_times(context, "door")) >= 4, what="4 frames")
        assert [gap[1:] for gap in gap_rows(context, "door")] == [(None, "stopped")]
        before = len(frame_times(context, "door"))
        with feed_worker(context):
            until(lambda: len(frame_times(context, "door")) >= before + 3, what="3 more")
    (gap, _) = gap_rows(context, "door")
    times = frame_times(context, "door")
    assert gap[2] == "stopped"
    assert gap[0] == pytest.approx(times[before - 1], abs=0.6)
    assert gap[1] == times[before]
    outcomes = sql(context, "select outcome, count(*) from video_segments group by 1")
    assert outcomes == [("complete", 2)]


def test_pause_resume_and_removal(context: Context) -> None:
    with Camera() as camera, feed_worker(context):
        add_feed(context, "hall", camera.url, KeyframePolicy(0.0))
        until(lambda: len(frame_times(context, "hall")) >= 3, what="3 keyframes")
        pause_feed(context, "hall")
        until(lambda: sql(context, "select state from jobs") == [("done",)], what="the pause")
        paused = len(frame_times(context, "hall"))
        time.sleep(1.5)
        assert len(frame_times(context, "hall")) == paused
        assert [gap[1:] for gap in gap_rows(context, "hall")] == [(None, "paused")]
        resume_feed(context, "hall")
        until(lambda: len(frame_times(context, "hall")) > paused, what="frames again")
        assert gap_rows(context, "hall")[0][1] == frame_times(context, "hall")[paused]
        remove_feed(context, "hall")
        until(
            lambda: sql(context, "select distinct state from jobs") == [("done",)],
            what="the end of its job",
        )
    assert sql(context, "select count(*) from feeds") == [(0,)]
    assert all(gap[1] is not None for gap in gap_rows(context, "hall"))
    assert sql(context, "select count(*) from video_segments where outcome is null") == [(0,)]


def test_adding_twice_changes_nothing_and_another_address_is_refused(context: Context) -> None:
    first = add_feed(context, "twice", "rtsp://camera.example/a", IntervalPolicy(1))
    assert add_feed(context, "twice", "rtsp://camera.example/a", IntervalPolicy(1)) == first
    with pytest.raises(AlreadyThere, match="has another feed"):
        add_feed(context, "twice", "rtsp://camera.example/b", IntervalPolicy(1))
    assert sql(context, "select count(*) from jobs") == [(1,)]
    for unknown in (pause_feed, resume_feed, remove_feed):
        with pytest.raises(NotFound, match="'none' has no feed"):
            unknown(context, "none")


def test_a_feed_whose_job_is_lost_gets_another(context: Context) -> None:
    feed_id = add_feed(context, "lost", "rtsp://camera.example/a", IntervalPolicy(1))
    sql(context, "update jobs set state = 'failed', error_code = 'internal'")
    assert reconcile(context) == 1
    assert reconcile(context) == 0
    rows = sql(context, "select payload from jobs where state = 'queued'")
    assert rows == [({"feed_id": feed_id},)]


def test_a_full_disk_is_a_gap_that_ends_by_itself(context: Context) -> None:
    """The floor of free space rises above what there is, and falls again."""
    with Camera() as camera, feed_worker(context):
        add_feed(context, "full", camera.url, IntervalPolicy(0.2))
        until(lambda: len(frame_times(context, "full")) >= 5, what="5 frames")
        floor = context.settings.min_free_bytes
        context.settings.__dict__["min_free_bytes"] = 2**62
        try:
            until(lambda: gap_rows(context, "full"), what="the gap")
            stands = len(frame_times(context, "full"))
            until(lambda: dropped(context, "full").get("storage", 0) > 3, what="drops")
            assert len(frame_times(context, "full")) == stands
        finally:
            context.settings.__dict__["min_free_bytes"] = floor
        until(lambda: len(frame_times(context, "full")) > stands + 3, what="frames again")
        error = "select error_code from feed_status"
        until(lambda: sql(context, error) == [(None,)], what="the end of the trouble")
        assert camera.connections == 1
    gap, *_ = gap_rows(context, "full")
    times = frame_times(context, "full")
    assert gap == (times[stands - 1], times[stands], "storage_full")
    lost = round((gap[1] - gap[0]) / 0.2) - 1
    assert dropped(context, "full")["storage"] == pytest.approx(lost, abs=2)


def test_what_cannot_be_kept_up_with_is_dropped_oldest_first_and_counted(
    context: Context,
) -> None:
    slow = SlowBackbone(context.backbone("tiny-a"))
    behind = replace(
        with_settings(context, feed_queue_frames=2, embed_batch=1), backbone=lambda _name: slow
    )
    with Camera() as camera, feed_worker(behind):
        add_feed(context, "busy", camera.url, IntervalPolicy(0.1))
        until(lambda: dropped(context, "busy").get("busy", 0) >= 10, what="drops")
        assert sql(context, "select max(behind_frames) from feed_status")[0][0] <= 2
    times = frame_times(context, "busy")
    assert times == sorted(times)
    assert set(dropped(context, "busy")) == {"busy"}


def test_no_camera_is_starved_by_the_others(context: Context) -> None:
    """On a machine that is too small each feed has its turn, whatever time it says."""
    slow = SlowBackbone(context.backbone("tiny-a"))
    small = replace(
        with_settings(context, feed_queue_frames=2, embed_batch=1), backbone=lambda _name: slow
    )
    with Camera() as right, Camera() as ahead, feed_worker(small):
        ahead.faults.clock_offset_s = 8.0
        for name, camera in (("right", right), ("ahead", ahead)):
            add_feed(context, name, camera.url, IntervalPolicy(0.1))
        for name in ("right", "ahead"):  # whichever connected first had the machine for itself
            until(partial(frame_times, context, name), what=f"a frame of {name}")
        before = {name: len(frame_times(context, name)) for name in ("right", "ahead")}
        until(lambda: len(frame_times(context, "right")) >= before["right"] + 8, what="8 frames")
        assert len(frame_times(context, "ahead")) >= before["ahead"] + 5


def test_a_mask_holds_for_a_live_camera_from_the_moment_it_is_set(context: Context) -> None:
    with Camera() as camera, feed_worker(context):
        add_feed(context, "masked", camera.url, IntervalPolicy(0.2))
        until(lambda: len(frame_times(context, "masked")) >= 3, what="3 frames")
        ((camera_id,),) = sql(context, "select id from cameras where name = 'masked'")
        with context.db.transaction() as session:
            mask_id = set_mask(session, COMMAND_LINE, camera_id, [Box(0, 0, 1, 0.5)])
        before = len(frame_times(context, "masked"))
        until(lambda: len(frame_times(context, "masked")) >= before + 4, what="masked frames")
    rows = sql(
        context,
        f"select mask_id, picture_sha256 from frames where camera_id = {camera_id} order by id",
    )
    assert [found for found, _ in rows] == [None] * before + [mask_id] * (len(rows) - before)
    shown = [context.pictures.load(sha256) for _, sha256 in rows]
    half = shown[0].shape[0] // 2
    assert all(img[: half - 16].min() > 30 for img in shown[:before])
    assert all(img[:half].max() < 12 for img in shown[before:])
    assert all(img[-8:].min() > 30 for img in shown)
    assert set(dropped(context, "masked")) <= {"stopped"}


def test_a_still_camera_is_kept_on_change_only(context: Context) -> None:
    with Camera() as camera, feed_worker(context):
        add_feed(context, "still", camera.url, ChangePolicy(100.0, 60.0, 0.1))
        until(lambda: len(frame_times(context, "still")) >= 1, what="the first frame")
        decoded = "select coalesce(sum(frames_decoded), 0) from video_segments"
        time.sleep(3)
        assert len(frame_times(context, "still")) == 1
    assert sql(context, decoded)[0][0] > 10


def test_what_is_erased_of_a_live_camera_stays_erased_and_it_goes_on(context: Context) -> None:
    with Camera() as camera, feed_worker(context):
        add_feed(context, "erased", camera.url, IntervalPolicy(0.2))
        until(lambda: len(frame_times(context, "erased")) >= 5, what="5 frames")
        span, _ = camera_span(context, "erased", None, None)
        order_id = submit_erasure(context, span)
        until(lambda: job(context, order_id).state == "done", what="the erasure")
        ended_s = time.time()
        until(lambda: len(frame_times(context, "erased")) >= 5, what="frames again")
    assert min(frame_times(context, "erased")) > ended_s - 2


def test_a_file_is_a_camera_that_goes_round(
    context: Context, footage: dict[str, Path], tmp_path: Path
) -> None:
    clip = tmp_path / "clip.mp4"
    shutil.copy(footage["bikes"], clip)
    allowed = with_settings(context, feed_files_dir=tmp_path)
    length_s = probe(clip, 10**8).duration_s
    assert length_s is not None
    with feed_worker(allowed):
        add_feed(allowed, "loop", f"file:{clip}", IntervalPolicy(1.0))
        until(lambda: len(frame_times(context, "loop")) > length_s + 3, 60, "more than one round")
    gaps_s = [after - before for before, after in pairwise(frame_times(context, "loop"))]
    assert all(abs(gap_s - 1) < 0.3 for gap_s in gaps_s[1:]), gaps_s
    assert {gap[2] for gap in gap_rows(context, "loop")} == {"stopped"}


def test_a_clip_by_http_is_read_once_to_its_end(
    context: Context, footage: dict[str, Path], web: Web
) -> None:
    with_index_first(footage["car"], web.folder / "clip.mp4")
    with feed_worker(context):
        add_feed(context, "clip", f"{web.url}/clip.mp4", IntervalPolicy(1.0))
        until(
            lambda: sql(context, "select desired_state from feeds") == [("ended",)], 60, "the end"
        )
    length_s = probe(web.folder / "clip.mp4", 10**8).duration_s
    assert length_s is not None
    assert len(frame_times(context, "clip")) == pytest.approx(length_s, abs=2)
    assert gap_rows(context, "clip") == []
    assert sql(context, "select state from jobs") == [("done",)]


def test_a_playlist_is_read_live_and_cannot_name_local_files(context: Context, web: Web) -> None:
    secret = web.folder.parent / "secret.ts"
    write_ts(secret, 40)
    write_ts(web.folder / "0.ts", 40)
    head = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:4\n#EXT-X-MEDIA-SEQUENCE:0\n"
    (web.folder / "good.m3u8").write_text(head + "#EXTINF:4.0,\n0.ts\n")
    (web.folder / "evil.m3u8").write_text(head + f"#EXTINF:4.0,\nfile://{secret}\n")
    with feed_worker(context):
        for name in ("good", "evil"):
            add_feed(context, name, f"{web.url}/{name}.m3u8", KeyframePolicy(0.0))
        until(lambda: len(frame_times(context, "good")) >= 3, what="keyframes of the playlist")
        until(
            lambda: (
                sql(
                    context,
                    "select error_code from feed_status s join feeds f on f.id = feed_id"
                    " join cameras c on c.id = camera_id where c.name = 'evil'",
                )
                != [(None,)]
            ),
            what="the refusal",
        )
    assert frame_times(context, "evil") == []


def dumped(context: Context, folder: Path) -> str:
    """Every row of the database as Postgres's own program writes it."""
    url = str(context.settings.database_url)
    with psycopg.connect(psycopg_url(url)) as connection:
        connection.execute("set transaction isolation level repeatable read")
        (snapshot,) = connection.execute("select pg_export_snapshot()").fetchone() or ("",)
        dump_database(url, snapshot, folder / "dump", given=False)
    command = [str(postgres_binary("pg_restore")), "--file=-", str(folder / "dump")]
    read = subprocess.run(command, capture_output=True, check=True)
    text = read.stdout.decode(errors="replace")
    assert "COPY public.feeds" in text
    return text


def test_a_password_is_in_no_log_row_or_message(
    context: Context, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Through a wrong password, a lost camera and a right one, whatever is written of them."""
    marker = "hunter2MARKER"
    with Camera(user="ris", password="other") as camera, feed_worker(context):
        url = f"rtsp://ris:{marker}@127.0.0.1:{camera.port}/live?token={marker}"
        add_feed(context, "secret", url, IntervalPolicy(EVERY_S))
        error = "select error_code from feed_status"
        until(lambda: sql(context, error) == [("auth",)], what="auth")
        camera.password = marker
        until(lambda: len(frame_times(context, "secret")) >= 2, what="frames")
        camera.stop()
        until(lambda: sql(context, error) == [("unreachable",)], what="unreachable")
        assert marker not in dumped(context, tmp_path)
        with context.db.transaction() as session:
            (summary,) = feed_record.summarise(session)
    assert marker not in redacted(summary.url)
    for table, columns in (
        ("feeds", "*"),
        ("feed_status", "error_code, error_detail"),
        ("video_segments", "*"),
        ("feed_gaps", "*"),
        ("jobs", "*"),
    ):
        assert marker not in str(sql(context, f"select {columns} from {table}")), table
    captured = capfd.readouterr()
    assert "feed_lost" in captured.out + captured.err
    assert marker not in captured.out + captured.err
