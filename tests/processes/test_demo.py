"""`ris demo` stops what it started: at its end, on Ctrl-C, on SIGTERM, on an error."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from tests.processes.harness import PATIENCE_S, Ris, processes_of
from worker.embedded.control import stop_supervisor

pytestmark = pytest.mark.slow


@pytest.fixture
def demo(tmp_path: Path, quick_settings: dict[str, str]):
    """RIS on a folder of this test's own; the demo keeps its own folder inside."""
    made = Ris(tmp_path / "var", quick_settings, cwd=tmp_path)
    yield made
    stop_supervisor(made.data_dir / "demo")


def wait_for(demo: Ris, process: subprocess.Popen[bytes], said: Path, words: str) -> None:
    demo.eventually(
        lambda: words in said.read_text() or process.poll() is not None, f"demo says {words!r}"
    )
    assert process.poll() is None, said.read_text()


@pytest.mark.parametrize(
    ("number", "words"),
    [(signal.SIGTERM, "waiting for worker"), (signal.SIGINT, "ingesting 2 cameras")],
)
def test_interrupted_it_stops_everything(demo, tmp_path, number, words):
    said = tmp_path / "said"
    process = demo.start("demo", stderr_path=said)
    wait_for(demo, process, said, words)
    assert processes_of(demo.data_dir / "demo")
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # what a terminal does
    else:
        process.send_signal(number)
    assert process.wait(PATIENCE_S) == 130, said.read_text()
    assert processes_of(demo.data_dir) == []
    assert "Traceback" not in said.read_text()


def test_an_error_inside_stops_everything(demo, tmp_path):
    bad = tmp_path / "bad.mp4"
    bad.write_text("not a video")
    done = demo.run("demo", str(bad), expect=1)
    assert "video_invalid" in done.stderr
    assert str(bad) in done.stderr
    assert "Traceback" not in done.stderr
    assert processes_of(demo.data_dir) == []


def test_kept_it_answers_until_down(demo, tmp_path):
    out = tmp_path / "demo.png"
    done = demo.run("demo", "--keep", "--out", str(out))
    assert "street" in done.stdout
    assert "down" in done.stdout
    with Image.open(out) as picture:
        picture.load()
        assert picture.format == "PNG"
    kept = Ris(demo.data_dir / "demo", demo.settings, tmp_path)
    assert {camera["name"] for camera in kept.json("cameras")} == {"car", "street"}
    assert kept.json("down") == {"stopped": True}
    assert processes_of(demo.data_dir) == []
    assert kept.json("down") == {"stopped": False}
