"""`ris feed`: cameras that are read all the time."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Annotated, Any

import typer

from models.repositories import feeds as feed_record
from models.repositories.feeds import FeedSummary
from worker.admin.output import Json, console, emit_json, table, when
from worker.core.sampling import policy_named
from worker.errors import InputInvalid
from worker.feeds import add_feed, pause_feed, remove_feed, resume_feed
from worker.runtime import process_context
from worker.video.address import redacted

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Cameras that are read all the time.",
)
_DEFAULT_EVERY_S = 10.0

Name = Annotated[str, typer.Argument(help="Name of the camera.")]


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="Name of the camera; a new name is a new camera.")],
    url: Annotated[
        str,
        typer.Argument(help="rtsp:, http: or file: address; - reads it from standard input."),
    ],
    every: Annotated[
        float | None, typer.Option(help="Seconds between sampled frames, default 10.")
    ] = None,
    keyframes: Annotated[
        bool, typer.Option("--keyframes", help="Decode keyframes only: far cheaper.")
    ] = False,
    on_change: Annotated[
        bool, typer.Option("--on-change", help="Only when the picture changes, or after a minute.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Read a camera from now on. Repeating the same command changes nothing."""
    every_s = _DEFAULT_EVERY_S if every is None else every
    if keyframes and on_change:
        raise InputInvalid("--keyframes and --on-change are two policies: give one")
    named = "keyframe" if keyframes else "change" if on_change else "interval"
    policy = policy_named(named, every_s)
    address = sys.stdin.readline().strip() if url == "-" else url
    if not address:
        raise InputInvalid("no address came on standard input")
    feed_id = add_feed(process_context(), name, address, policy)
    if as_json:
        emit_json({"feed_id": feed_id, "camera": name.strip()})
    else:
        console.print(f"{name}: feed {feed_id}; `ris feed ls` shows how it is", markup=False)


@app.command(name="ls")
def list_feeds(as_json: Json = False) -> None:
    """List feeds and how they are."""
    with process_context().db.transaction() as session:
        feeds = feed_record.summarise(session)
    if as_json:
        emit_json([asdict(feed) | {"url": redacted(feed.url)} for feed in feeds])
        return
    table(
        None,
        ["camera", "address", "state", "last frame", "gaps", "dropped", "trouble"],
        [
            (
                feed.camera,
                redacted(feed.url),
                state_of(feed),
                when(feed.last_frame_utc),
                feed.gaps,
                feed.dropped_frames,
                _trouble(feed),
            )
            for feed in feeds
        ],
    )


def state_of(feed: FeedSummary) -> str:
    """How a feed is, in one word: what is wanted of it, and while it shall run, what it does."""
    return feed.phase if feed.desired_state == "running" else feed.desired_state


def _trouble(feed: FeedSummary) -> str:
    if feed.desired_state != "running":
        return ""
    if feed.error_code is not None:
        return f"{feed.error_code}: {feed.error_detail}"
    return "" if feed.open_gap_reason is None else f"gap: {feed.open_gap_reason}"


@app.command()
def gaps(
    camera: Annotated[str | None, typer.Option(help="Of this camera only.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="At most so many.")] = 100,
    as_json: Json = False,
) -> None:
    """List what was missed and why, newest first, and how many frames were dropped."""
    with process_context().db.transaction() as session:
        found = feed_record.gaps(session, camera, limit)
        dropped = feed_record.drops(session, camera)
    if as_json:
        rows: list[dict[str, Any]] = [
            {"camera": name, "reason": reason, "frames": frames} for name, reason, frames in dropped
        ]
        emit_json({"gaps": [asdict(gap) for gap in found], "dropped": rows})
        return
    table(
        "Gaps",
        ["camera", "from", "to", "reason"],
        [(gap.camera, when(gap.from_utc), when(gap.to_utc), gap.reason) for gap in found],
    )
    if dropped:
        table("Dropped frames", ["camera", "reason", "frames"], dropped)


@app.command()
def pause(name: Name) -> None:
    """Stop reading a camera until it is resumed; the gap is recorded."""
    pause_feed(process_context(), name)
    console.print(f"{name}: paused", markup=False)


@app.command()
def resume(name: Name) -> None:
    """Read a paused camera again, or a recording once more."""
    resume_feed(process_context(), name)
    console.print(f"{name}: running", markup=False)


@app.command()
def rm(name: Name) -> None:
    """Read a camera no more and forget its address. Its footage stays."""
    remove_feed(process_context(), name)
    console.print(f"{name}: removed; what was recorded stays", markup=False)
