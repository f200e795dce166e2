"""Streams that would keep a reader waiting for ever, and files that are gone."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import numpy as np
import pytest

from worker.core.sampling import IntervalPolicy
from worker.core.types import SizePx
from worker.errors import FeedFailed
from worker.video.address import AddressRules
from worker.video.live_feed import open_live
from worker.video.live_values import LiveOptions


def options(folder: Path | None = None) -> LiveOptions:
    rules = AddressRules(("http",), ("127.0.0.0/8",), folder)
    return LiveOptions(IntervalPolicy(0.1), SizePx(32, 32), 160, 10**6, 1.0, rules)


def write_ts(path: Path, pictures_s: int, sound_s: int) -> None:
    """MPEG-TS whose pictures end before its sound does."""
    with av.open(str(path), "w", format="mpegts") as container:
        video = container.add_stream("libx264", rate=10)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        video.gop_size = 10
        video.codec_context.time_base = Fraction(1, 10)
        audio = container.add_stream("mp2", rate=16000, layout="mono")
        for tenth in range(sound_s * 10):
            if tenth < pictures_s * 10:
                img_hwc = np.full((48, 64, 3), tenth * 5 % 255, np.uint8)
                frame = av.VideoFrame.from_ndarray(img_hwc, format="rgb24")
                frame.pts = tenth
                container.mux(video.encode(frame))
            elif tenth == pictures_s * 10:
                container.mux(video.encode(None))
            sound = av.AudioFrame.from_ndarray(
                np.zeros((1, 1600), np.int16), format="s16", layout="mono"
            )
            sound.sample_rate, sound.pts = 16000, tenth * 1600
            container.mux(audio.encode(sound))
        container.mux(audio.encode(None))


@pytest.fixture
def sound_only(tmp_path: Path) -> Iterator[str]:
    """A server whose stream sends pictures for 3 s, and then sound for 6 s, as it comes."""
    write_ts(tmp_path / "live.ts", 3, 60)
    content = (tmp_path / "live.ts").read_bytes()

    class Serving(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "video/mp2t")
            self.end_headers()
            step = len(content) // 120
            for at in range(0, len(content), step):
                self.wfile.write(content[at : at + step])
                time.sleep(0.05 if at > len(content) // 10 else 0)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Serving) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/live.ts"
        server.shutdown()


def test_sound_without_pictures_is_a_stall(sound_only: str) -> None:
    video = open_live(sound_only, options(), "feed sound")
    pictures = 0
    with pytest.raises(FeedFailed) as failure:
        while True:
            pictures += video.step() is not None
    video.close()
    assert pictures > 10
    assert failure.value.reason == "stalled"


def test_a_pipe_is_no_recording(tmp_path: Path) -> None:
    """Opening one would wait for a writer."""
    os.mkfifo(tmp_path / "pipe.ts")
    found: list[FeedFailed] = []

    def read() -> None:
        try:
            open_live(f"file:{tmp_path}/pipe.ts", options(tmp_path), "feed pipe")
        except FeedFailed as error:
            found.append(error)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(5)
    assert [error.reason for error in found] == ["invalid"]


def test_a_file_that_is_gone_when_it_goes_round_is_a_failure_of_the_feed(tmp_path: Path) -> None:
    write_ts(tmp_path / "loop.ts", 1, 2)
    video = open_live(f"file:{tmp_path}/loop.ts", options(tmp_path), "feed loop")
    (tmp_path / "loop.ts").unlink()
    with pytest.raises(FeedFailed) as failure:
        while True:
            video.step()
    video.close()
    assert failure.value.reason == "not_found"
