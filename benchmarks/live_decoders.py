"""What it costs to read live cameras in processes of their own, beside reading them in the worker.

    python -m benchmarks.live_decoders --cameras 10 --seconds 20

Prints one JSON line a figure. Cameras run in a process of their own; one worker thread reads all.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from benchmarks.machine import machine
from tests.rtsp_server import Camera, encoded
from worker.core.sampling import IntervalPolicy
from worker.core.types import SizePx
from worker.video.address import AddressRules
from worker.video.live import open_video_live
from worker.video.live_feed import open_live
from worker.video.live_values import LiveOptions
from worker.video.live_wire import LiveRequest

INPUT = SizePx(512, 512)
FPS = 25
RULES = AddressRules(("rtsp",), ("127.0.0.0/8",), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cameras", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=20.0)
    given = parser.parse_args()
    for w_px, h_px in ((1920, 1080), (640, 360)):
        with cameras(given.cameras, w_px, h_px) as urls:
            for figure in measured(urls, given.seconds):
                print(json.dumps(figure | {"pictures": f"{w_px} x {h_px}", "machine": machine()}))


@contextmanager
def cameras(count: int, w_px: int, h_px: int) -> Iterator[list[str]]:
    """Addresses of cameras that another process runs."""
    ours, theirs = multiprocessing.Pipe()
    spawning = multiprocessing.get_context("spawn")
    process = spawning.Process(target=serve, args=(theirs, count, w_px, h_px))
    process.start()
    yield ours.recv()
    process.terminate()
    process.join()


def serve(told: Connection, count: int, w_px: int, h_px: int) -> None:
    clip = encoded(w_px, h_px, FPS, FPS, 2 * FPS)
    with ExitStack() as stack:
        told.send([stack.enter_context(Camera(clip=clip)).url for _ in range(count)])
        time.sleep(3600)


def measured(urls: list[str], seconds: float) -> Iterator[dict[str, object]]:
    policy = IntervalPolicy(1.0)
    options = LiveOptions(policy, INPUT, 1920, 10**7, 8.0, RULES)
    began_s = time.monotonic()
    feeds = [open_live(url, options, "feed x") for url in urls]
    started_s = (time.monotonic() - began_s) / len(feeds)
    kept_ms: list[float] = []
    while any(feed.step() is None for feed in feeds):
        pass
    children = [psutil.Process(feed.pid) for feed in feeds]
    before_s = [sum(child.cpu_times()[:2]) for child in children]
    own_s, until_s, seen = time.thread_time(), time.monotonic() + seconds, 0
    while time.monotonic() < until_s:
        for feed in feeds:
            if feed.step() is None:
                continue
            seen += 1
            if seen % FPS == 0:
                kept_ms.append(timed_ms(partial(feed.pixels, INPUT)))
    own_s = time.thread_time() - own_s
    spent_s = sum(sum(c.cpu_times()[:2]) for c in children) - sum(before_s)
    pss = [pss_mb(child.pid) for child in children]
    for feed in feeds:
        feed.close()
    own, apart_ms = in_worker(urls[0], seconds / 2)
    yield figure("live-start", started_s * 1000, "ms", n=len(feeds))
    yield figure("live-memory", sum(pss) / len(pss), "MB PSS a camera", n=len(feeds))
    yield figure("live-worker-cpu", own_s / seen * 1e6, "us a picture seen", n=seen)
    yield figure(
        "live-cpu", (own_s + spent_s) / seen * 1e3, "ms a picture seen", own["cpu_ms"], n=seen
    )
    yield figure(
        "live-kept", sum(kept_ms) / len(kept_ms), "ms a picture kept", apart_ms, n=len(kept_ms)
    )


def in_worker(url: str, seconds: float) -> tuple[dict[str, float], float]:
    """The same with FFmpeg in this process, its connection made by itself."""
    request = LiveRequest(
        kind="rtsp",
        url=url,
        host=None,
        camera=(str(urlsplit(url).hostname), urlsplit(url).port or 554),
        label="feed x",
        policy=IntervalPolicy(1.0),
        input_size=INPUT,
        picture_max_side_px=1920,
        max_px=10**7,
        stall_s=8.0,
        patience_s=60.0,
        pace_from_s=0.0,
    )
    video = open_video_live(request, None)
    kept_ms: list[float] = []
    own_s, until_s, seen = time.process_time(), time.monotonic() + seconds, 0
    while time.monotonic() < until_s:
        for picture in video.step():
            seen += 1
            if seen % FPS == 0:
                kept_ms.append(timed_ms(partial(video.pixels, picture, INPUT)))
    own_s = time.process_time() - own_s
    video.close()
    return {"cpu_ms": own_s / seen * 1e3}, sum(kept_ms) / len(kept_ms)


def timed_ms(call: Callable[[], object]) -> float:
    began_s = time.perf_counter()
    call()
    return (time.perf_counter() - began_s) * 1e3


def pss_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def figure(
    name: str, value: float, unit: str, peer_value: float | None = None, *, n: int
) -> dict[str, object]:
    told: dict[str, object] = {"name": name, "value": round(value, 2), "unit": unit, "n": n}
    if peer_value is not None:
        told |= {"peer": "FFmpeg in the worker", "peer_value": round(peer_value, 2)}
        told["ratio"] = round(peer_value / value, 2)
    return told


if __name__ == "__main__":
    main()
