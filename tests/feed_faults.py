"""Faults of a live camera, one after the other, and what must be true of the rows afterwards."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import psycopg

from tests.conftest import psycopg_url
from tests.feeding import frame_times, gap_rows, until
from tests.parts import sql
from tests.rtsp_server import Camera, encoded
from worker.context import Context

SLACK_S = 0.35
"""Between a picture and its time by the camera's clock, and the other way round."""


@dataclass(frozen=True)
class Outcome:
    """``noticed_s``: from the fault to the status that says so (None: nothing to notice).

    ``back_s``: from the camera's return to a searchable frame.
    """

    fault: str
    camera: str
    noticed_s: float | None
    back_s: float


@dataclass
class Trial:
    """One camera that is being harmed."""

    context: Context
    name: str
    camera: Camera
    stall_s: float
    every_s: float
    dice: random.Random
    _before: object = None
    _changed_s: float = 0.0

    def run(self, fault: str) -> Outcome:
        """Wait until it is live, harm it, mend it, wait for the next frame."""
        until(lambda: self._phase() == "live", 60, f"{self.name} live before {fault}")
        began_s = time.time()
        mend = FAULTS[fault](self)
        noticed_s = None
        if mend is not None:
            until(lambda: self._phase() != "live", 60, f"{self.name} notices {fault}")
            noticed_s = time.time() - began_s
            time.sleep(self.dice.uniform(0.2, 2.5))
            mend()
        returned_s = time.time()
        until(lambda: self._newest() > returned_s + 0.2, 60, f"{self.name} back after {fault}")
        return Outcome(fault, self.name, noticed_s, time.time() - returned_s)

    def _phase(self) -> str:
        return str(self._one("select phase from feed_status s join feeds f on f.id = feed_id"))

    def _newest(self) -> float:
        """When the newest frame was recorded, by this machine's clock: cameras lie."""
        newest = self._one("select max(fr.id) from frames fr join feeds f using (camera_id)")
        if newest != self._before:
            self._before, self._changed_s = newest, time.time()
        return self._changed_s

    def newest_width_px(self) -> object:
        """Width of the newest segment."""
        return self._one(
            "select (array_agg(w_px order by v.id desc))[1] from video_segments v"
            " join feeds f using (camera_id)"
        )

    def _one(self, statement: str) -> object:
        whole = statement + " join cameras c on c.id = f.camera_id where c.name = %s"
        return self._record.execute(whole, (self.name,)).fetchall()[0][0]

    @cached_property
    def _record(self) -> psycopg.Connection:
        """Looked at twenty times a second: one that is made anew each time slows what is timed."""
        return psycopg.connect(
            psycopg_url(str(self.context.settings.database_url)), autocommit=True
        )


def _kill(trial: Trial) -> None:
    trial.camera.kill()


def _stall(trial: Trial) -> Callable[[], None]:
    trial.camera.faults.stalled = True
    return lambda: setattr(trial.camera.faults, "stalled", False)


def _half_open(trial: Trial) -> Callable[[], None]:
    trial.camera.faults.mute = True
    return lambda: setattr(trial.camera.faults, "mute", False)


def _restart(trial: Trial) -> Callable[[], None]:
    trial.camera.stop()
    return lambda: _started(trial.camera)


def _started(camera: Camera) -> None:
    camera.start()


def _auth(trial: Trial) -> Callable[[], None]:
    right = trial.camera.password
    trial.camera.password = "changed"
    trial.camera.kill()
    return lambda: setattr(trial.camera, "password", right)


def _end(trial: Trial) -> None:
    """The camera says goodbye after a few pictures, once."""
    trial.camera.faults.end_after = 0
    time.sleep(0.5)
    trial.camera.faults.end_after = None


def _resolution(trial: Trial) -> None:
    """Another size in mid-stream, from the next keyframe on; a segment of that size begins."""
    small = trial.camera.clip is encoded()
    trial.camera.clip = encoded(208, 160) if small else encoded()
    until(lambda: trial.newest_width_px() == (208 if small else 160), 60, "the new size")


def _corrupt(trial: Trial) -> None:
    trial.camera.faults.corrupt_share = 0.05
    time.sleep(2.0)
    trial.camera.faults.corrupt_share = 0.0


def _clock(trial: Trial) -> None:
    """Up to 30 s either way, which is believed, or an hour, which is not."""
    trial.camera.faults.clock_offset_s = trial.dice.choice((-30, -3, 3, 30, -3600, 3600))
    time.sleep(1.5)
    trial.camera.faults.clock_offset_s = 0.0


FAULTS: dict[str, Callable[[Trial], Callable[[], None] | None]] = {
    "kill": _kill,
    "stall": _stall,
    "half_open": _half_open,
    "restart": _restart,
    "auth": _auth,
    "end": _end,
    "resolution": _resolution,
    "corrupt": _corrupt,
    "clock": _clock,
}


def wrong_gaps(context: Context, camera: str, every_s: float) -> list[str]:
    """Where gaps are not right to one sample: silent holes, and gaps that are none.

    A hole is not silent where as many frames were counted as dropped: a busy machine drops some,
    also on either side of a gap.
    """
    times, gaps = frame_times(context, camera), gap_rows(context, camera)
    wrong = []
    missing = 0
    for before_s, after_s in pairwise(times):
        if after_s - before_s <= 2 * every_s + SLACK_S:
            continue
        if not any(
            to_s is not None
            and -SLACK_S <= from_s - before_s <= every_s + SLACK_S
            and abs(to_s - after_s) <= SLACK_S
            for from_s, to_s, _ in gaps
        ):
            wrong.append(f"hole {before_s:.3f} .. {after_s:.3f} has no gap")
            told_s = sum(
                max(0.0, min(after_s, to_s) - max(before_s, from_s))
                for from_s, to_s, _ in gaps
                if to_s is not None
            )
            missing += max(1, round((after_s - before_s - told_s) / every_s) - 1)
    dropped = sql(
        context,
        "select coalesce(sum(d.frames), 0)::int from feed_drops d join cameras c"
        " on c.id = d.camera_id where c.name = %s and d.reason = 'busy'",
        camera,
    )[0][0]
    if missing <= dropped + (len(wrong) if dropped else 0):
        wrong = []
    else:
        wrong.append(f"{missing} frames are missing in them, {dropped} were dropped")
    for from_s, to_s, reason in gaps:
        inside = [t for t in times if from_s + SLACK_S < t < (to_s or float("inf")) - SLACK_S]
        if inside:
            wrong.append(f"gap {from_s:.3f} .. {to_s} ({reason}) has frames {inside[:3]}")
    return wrong
