"""Many live cameras on a small machine for a while: is anything lost, does memory grow?

    .venv/bin/python -m benchmarks.many_feeds [--cameras 50] [--minutes 30] [--every 10]

A RIS of its own (`ris up`) with default settings, and so many RTSP cameras on loopback, served by
another process: 640 x 360, ten pictures a second, a keyframe every two. Each is added as a feed of
keyframes over the HTTP API. Every few seconds the proportional memory (PSS) and the open files of
all processes of RIS are read, and how old each new frame is when it can be searched. At the end
every camera must have a frame for every interval, and nothing may have been missed. Memory is
judged by the slope over the second half, open files by its two halves. Prints one JSON object;
exit 1 where something is wrong.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.live_decoders import pss_mb
from benchmarks.machine import machine
from tests.processes.harness import Ris
from tests.rtsp_server import Camera, encoded
from worker.embedded.child_process import is_alive
from worker.embedded.state import api_path

FPS = 10
KEYFRAME_S = 2.0
LOOK_EVERY_S = 1.0
WEIGH_EVERY = 5
"""Looks; memory takes longer to read."""
NEW = """
    select f.id, c.name, extract(epoch from f.t_utc)::float8 from frames f
    join cameras c on c.id = f.camera_id join f_map_runs r on r.frame_id = f.id
    where f.id > %s order by f.id
"""
MISSED = """
    select (select count(*) from feed_gaps), (select coalesce(sum(frames), 0)::int from feed_drops),
    (select count(*) from jobs where state = 'failed' or attempts > 1 or error_code is not null),
    (select count(*) from jobs where kind = 'feed' and state not in ('queued', 'running'))
"""


@contextmanager
def cameras(count: int) -> Iterator[list[str]]:
    """Addresses of cameras that another process runs."""
    ours, theirs = multiprocessing.Pipe()
    spawning = multiprocessing.get_context("spawn")
    process = spawning.Process(target=_serve, args=(theirs, count), daemon=True)
    process.start()
    theirs.close()
    try:
        yield ours.recv()
    finally:
        process.terminate()
        process.join()


def _serve(told: Connection, count: int) -> None:
    clip = encoded(640, 360, FPS, int(FPS * KEYFRAME_S), int(FPS * KEYFRAME_S))
    with ExitStack() as stack:
        told.send([stack.enter_context(Camera(clip=clip)).url for _ in range(count)])
        time.sleep(86_400)


@dataclass
class Looks:
    """What was seen of a running RIS, look by look."""

    ris: Ris
    at_s: list[float] = field(default_factory=list)
    mb: list[float] = field(default_factory=list)
    open_files: list[int] = field(default_factory=list)
    cached_files: list[int] = field(default_factory=list)
    age_s: list[float] = field(default_factory=list)
    times_s: dict[str, list[float]] = field(default_factory=dict)
    newest: int = 0

    def look(self) -> None:
        """Note the new frames, and how old they are now."""
        now_s = time.time()
        for frame_id, name, t_s in self.ris.rows(NEW, self.newest):
            self.times_s.setdefault(name, []).append(t_s)
            self.age_s.append(now_s - t_s)
            self.newest = frame_id

    def weigh(self) -> None:
        """Note memory and open files now. Apart: mapped files of the index, and tables, which each
        connection's backend of Postgres opens as it first needs them; both are caches with bounds
        of their own."""
        mb, files, cached = 0.0, 0, 0
        caches = tuple(f"{self.ris.data_dir / one}/" for one in ("index", "postgres"))
        for process in self._processes():
            try:
                mb += pss_mb(process.pid)
                opened = [_target(one) for one in Path(f"/proc/{process.pid}/fd").iterdir()]
            except (OSError, psutil.Error):
                continue  # it has ended
            kept = sum(name.startswith(caches) for name in opened)
            files, cached = files + len(opened) - kept, cached + kept
        self.at_s.append(time.time())
        self.mb.append(mb)
        self.open_files.append(files)
        self.cached_files.append(cached)

    def _processes(self) -> list[psutil.Process]:
        found: dict[int, psutil.Process] = {}
        for pid in self.ris.state.pids.values():
            if is_alive(pid):
                with suppress(psutil.Error):
                    process = psutil.Process(pid)
                    found |= {one.pid: one for one in (process, *process.children(recursive=True))}
        return list(found.values())

    def cpu_s(self) -> float:
        """Processor time of what runs now, and of what it has started."""
        used_s = 0.0
        for process in self._processes():
            with suppress(psutil.Error):  # it has ended
                used_s += sum(process.cpu_times()[:4])
        return used_s

    def settled_files(self) -> list[float]:
        """Open files in the two halves of the second half (median): at first, processes open what
        they then keep."""
        third, fourth = np.array_split(self.open_files[len(self.open_files) // 2 :], 2)
        return [float(np.median(third)), float(np.median(fourth))]

    def slope(self, values: list[float] | list[int]) -> float:
        """Growth a minute over the second half."""
        half = len(values) // 2
        return float(np.polyfit(self.at_s[half:], values[half:], 1)[0]) * 60


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:
        return ""  # closed meanwhile


def add_feeds(ris: Ris, key: str, urls: list[str], every_s: float) -> None:
    """Each camera as a feed of keyframes."""
    url = json.loads(api_path(ris.data_dir).read_text())["url"]
    for number, address in enumerate(urls):
        body = {
            "camera": f"camera {number}",
            "url": address,
            "policy": "keyframe",
            "every_s": every_s,
        }
        request = urllib.request.Request(
            f"{url}/v1/feeds",
            data=json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
        )
        urllib.request.urlopen(request, timeout=60).close()


def holes(
    times_s: dict[str, list[float]], every_s: float, span_s: tuple[float, float]
) -> list[str]:
    """Where a camera has no frame for longer than its interval and a keyframe's distance."""
    found = []
    for name, seen in sorted(times_s.items()):
        at_s = np.array([span_s[0], *sorted(seen), span_s[1]])
        for place in np.flatnonzero(np.diff(at_s) > every_s + KEYFRAME_S):
            found.append(f"{name}: {at_s[place]:.1f} .. {at_s[place + 1]:.1f}")
    return found


def measured(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Run it; the figures."""
    settings = {"RIS_FEED_HOSTS": "127.0.0.0/8", **dict(given.set)}
    ris = Ris(folder / "var", settings, cwd=folder)
    key = ris.json("up")["admin_key"]
    looks = Looks(ris)
    try:
        with cameras(given.cameras) as urls:
            add_feeds(ris, key, urls, given.every)
            ris.eventually(lambda: _all_live(looks, given.cameras), "every camera has a frame", 600)
            began_s, cpu_s = time.time(), looks.cpu_s()
            while time.time() < began_s + 60 * given.minutes:
                looks.weigh()
                for _ in range(WEIGH_EVERY):
                    time.sleep(LOOK_EVERY_S)
                    looks.look()
            ended_s, cpu_s = time.time(), looks.cpu_s() - cpu_s
            gaps, drops, wrong_jobs, idle = ris.rows(MISSED)[0]
        return {
            "name": "many-feeds",
            "value": round(looks.slope(looks.mb), 2),
            "unit": "MB a minute",
            "cameras": given.cameras,
            "minutes": given.minutes,
            "frames": sum(map(len, looks.times_s.values())),
            "holes": holes(looks.times_s, given.every + given.late, (began_s, ended_s)),
            "gaps": gaps,
            "dropped": drops,
            "failed_or_repeated_slices": wrong_jobs,
            "feeds_without_a_slice": idle,
            "mb": [round(looks.mb[0]), round(max(looks.mb)), round(looks.mb[-1])],
            "open_files": looks.settled_files(),
            "cached_files": [looks.cached_files[0], looks.cached_files[-1]],
            "searchable_after_s": [
                round(float(np.percentile(looks.age_s, share)), 2) for share in (50, 95, 100)
            ],
            "looked_every_s": LOOK_EVERY_S,
            "cores": round(cpu_s / (ended_s - began_s), 2),
            "machine": machine(),
        }
    finally:
        ris.run("down")


def _all_live(looks: Looks, cameras: int) -> bool:
    time.sleep(1.0)
    looks.look()
    if len(looks.times_s) < cameras:
        return False
    looks.age_s.clear()
    return True


def sound(found: dict[str, Any]) -> bool:
    """Whether nothing was missed, and nothing grows."""
    missed = ("holes", "gaps", "dropped", "failed_or_repeated_slices", "feeds_without_a_slice")
    before, after = found["open_files"]
    return not any(found[name] for name in missed) and after <= before + 1 + found["cameras"] // 4


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cameras", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--every", type=float, default=10.0, help="seconds between frames")
    parser.add_argument("--late", type=float, default=1.0, help="seconds a frame may come late")
    parser.add_argument(
        "--set", nargs="*", default=[], type=lambda text: text.split("=", 1), help="RIS_X=..."
    )
    given = parser.parse_args()
    if given.minutes < 1:
        parser.error("--minutes: at least 1")
    with tempfile.TemporaryDirectory() as folder:
        found = measured(Path(folder), given)
    sys.stdout.write(json.dumps(found) + "\n")
    return 0 if sound(found) and found["value"] < 1.0 else 1


if __name__ == "__main__":
    sys.exit(main())
