"""Faults of live cameras, one after the other on several at once, with the default backbone.

    python -m benchmarks.feed_faults --faults 1000 --cameras 4

Prints one JSON line: the 95th percentile of the time from a camera's return to a searchable frame,
the longest a stall went unnoticed, and gaps that are wrong by more than a sample.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np

from benchmarks.machine import machine
from benchmarks.scratch import scratch_context
from models.repositories import feeds as feed_record
from tests.feed_faults import FAULTS, Outcome, Trial, wrong_gaps
from tests.feeding import feed_worker
from tests.rtsp_server import Camera
from worker.context import Context
from worker.core.sampling import IntervalPolicy
from worker.feeds import add_feed

EVERY_S = 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=1000)
    parser.add_argument("--cameras", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=7200.0, help="no new fault after so many")
    parser.add_argument("--stall", type=float, default=8.0)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with scratch_context(
        feed_hosts="127.0.0.0/8", feed_stall_s=given.stall, feed_clock_tolerance_s=40.0
    ) as context:
        context.backbone(context.settings.backbone)
        print(json.dumps(measured(context, given)))


def measured(context: Context, given: argparse.Namespace) -> dict[str, object]:
    each = -(-given.faults // given.cameras)
    with ExitStack() as held, feed_worker(context, slots=given.cameras + 2):
        trials = []
        for number in range(given.cameras):
            camera = held.enter_context(Camera(user="ris", password="right", digest=number % 2 < 1))
            name = f"camera {number}"
            add_feed(context, name, camera.url, IntervalPolicy(EVERY_S))
            dice = random.Random(given.seed * 1000 + number)
            trials.append(Trial(context, name, camera, given.stall, EVERY_S, dice))

        until_s = time.monotonic() + given.seconds

        def harm(trial: Trial) -> list[Outcome]:
            found: list[Outcome] = []
            while len(found) < each and time.monotonic() < until_s:
                found.append(trial.run(trial.dice.choice(sorted(FAULTS))))
            return found

        with ThreadPoolExecutor(given.cameras) as threads:
            outcomes = [outcome for found in threads.map(harm, trials) for outcome in found]
    wrong = [line for t in trials for line in wrong_gaps(context, t.name, EVERY_S)]
    with context.db.transaction() as session:
        dropped = sum(frames for _, _, frames in feed_record.drops(session))
    back_s = [outcome.back_s for outcome in outcomes]
    stalls_s = [o.noticed_s for o in outcomes if o.fault in ("stall", "half_open") and o.noticed_s]
    return {
        "name": "feed_faults",
        "value": round(float(np.percentile(back_s, 95)), 2),
        "unit": "s until back, p95",
        "n": len(outcomes),
        "worst_back_s": round(max(back_s), 2),
        "worst_stall_noticed_s": round(max(stalls_s, default=0.0), 2),
        "stall_s": given.stall,
        "wrong_gaps": len(wrong),
        "dropped": dropped,  # a machine too small for so many cameras: its holes are no gaps
        "examples": wrong[:5],
        "by_fault": {
            fault: round(max(o.back_s for o in outcomes if o.fault == fault), 2)
            for fault in sorted({o.fault for o in outcomes})
        },
        "seed": given.seed,
        "machine": machine(),
    }


if __name__ == "__main__":
    main()
