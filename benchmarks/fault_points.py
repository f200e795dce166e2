"""Faults at every step of a writer that touches disk or database: is anything lost or doubled?

    .venv/bin/python -m benchmarks.fault_points [--of seal ...] [--kind kill] [--faults 100]

``--of``: what is disturbed, an ingest, erasure, seal, compaction of codes, reindex, repair, or a
query with an uploaded picture (``benchmarks/disturbed.py``). A process of its own does it. At its
n-th step it kills itself (-9), or the disk says that it is full or broken, or the connection to
Postgres is lost: before a file is opened, read, written (or half written), cut, synced, renamed, a
folder made; kills and lost connections come before and just after a commit. Other processes then
take the work over and end it. The next one is disturbed ``--every`` steps later; when one ends
undisturbed, counting starts over. The peer is undisturbed work. Afterwards the product's sweeps
run, and no file may be left that no row names. Everything runs on own services and a throw-away
folder, with the default backbone. Prints a JSON object for each kind of work; exit 1 when anything
is wrong.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from dataclasses import replace

from benchmarks.disturbed import (
    ARRANGE,
    UNTYPED,
    Disturbed,
    RememberedBackbone,
    prepare,
    small_limits,
)
from benchmarks.faults import KINDS, STRUCK, Fault, in_child, say
from benchmarks.index_state import forgotten
from benchmarks.machine import machine
from benchmarks.scratch import reader, scratch_context
from worker.context import Context
from worker.generations import ensure_live_generation
from worker.leftovers import remove_former_files, remove_strays
from worker.logs import configure_logging
from worker.runtime import make_context
from worker.verify import verify_index


class Bench:
    """Disturbs work on one database, and counts what came of it."""

    def __init__(self, context: Context, of: str, kind: str, seed: int) -> None:
        self.context, self.of, self.kind = context, of, kind
        self.chance = random.Random(seed)
        self.faults: Counter[str] = Counter()
        self.answers: Counter[str] = Counter()
        self.wrong: Counter[str] = Counter()
        self.done = self.around = self.swept = 0
        self.recovery_s = [0.0]

    def own(self) -> Context:
        """A context with connections of this process; the loaded backbone is inherited."""
        url = str(self.context.settings.database_url)
        made = make_context(self.context.settings, url, application_name="ris fault_points")
        return replace(made, backbone=self.context.backbone, ring=self.context.ring)

    def end(self, work: Disturbed) -> None:
        """Let undisturbed processes take the work over until it is done."""
        began_s = time.monotonic()
        while True:
            in_child(lambda said: say(said, work.attempt(self.own())))
            if work.ended(self.context):
                break
            time.sleep(0.02)  # the dead worker's lease is still running
        self.recovery_s.append(time.monotonic() - began_s)

    def fault_at(self, step: int) -> bool:
        """Disturb one piece of work at its ``step``-th step; False when it had fewer."""
        work = ARRANGE[self.of](self.context, self.done, self.around)
        self.done += 1
        half = self.chance.random() < 0.5

        def attempt(said: int) -> None:
            own = self.own()
            Fault(self.kind, step, half, said).watch()
            say(said, work.attempt(own))

        fault, *answer = in_child(attempt)
        if not fault.startswith(STRUCK):
            self.end(work)
            return False
        self.faults[fault.removeprefix(STRUCK)] += 1
        said = "".join(answer) or work.record(self.context)
        self.answers[said] += 1
        self.wrong["untyped"] += said == UNTYPED
        self.end(work)
        self.wrong.update(work.wrong(self.context))
        return True

    def sweep(self) -> None:
        """What the product removes by itself, at once; then count the files that are left over."""
        before = len(forgotten(self.context))
        remove_former_files(self.context)
        remove_strays(self.context, older_than_s=-1.0)
        left = forgotten(self.context)
        sys.stderr.writelines(f"forgotten: {path}\n" for path in left)
        self.wrong["files_forgotten"] = before if self.of == "erase" else len(left)
        self.swept = before - len(left)


def measure(bench: Bench, faults: int, every: int, seconds: float) -> None:
    first = step = 1
    end_s = time.monotonic() + seconds
    while bench.faults.total() < faults and time.monotonic() < end_s:
        if bench.fault_at(step):
            step += every
            continue
        sys.stderr.write(f"fewer than {step} steps; {bench.faults.total()} faults so far\n")
        bench.around += 1
        first = first % every + 1  # the steps between those of last time
        step = first


def figure(bench: Bench, problems: int, seconds: float, seed: int) -> dict[str, object]:
    return {
        "name": f"fault_points_{bench.of}_{bench.kind}_wrong",
        "value": bench.wrong.total(),
        "unit": "frames and files",
        "peer": "the same undisturbed",
        "peer_value": 0,
        "ratio": None,
        "n": bench.faults.total(),
        "machine": machine(),
        "faults": dict(bench.faults),
        "answers": dict(bench.answers),
        "wrong": dict(bench.wrong),
        "files_swept": bench.swept,
        "verify_problems": problems,
        "slowest_recovery_s": round(max(bench.recovery_s), 2),
        "seconds": round(seconds, 1),
        "seed": seed,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--of", choices=tuple(ARRANGE), nargs="+", default=["ingest"])
    parser.add_argument("--faults", type=int, default=100, help="of each")
    parser.add_argument("--every", type=int, default=1, help="disturb every so manieth step")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop each after that")
    parser.add_argument("--kind", choices=KINDS, default="kill")
    parser.add_argument("--seed", type=int, default=None, help="of the half-written blocks")
    given = parser.parse_args()
    seed = random.randrange(2**32) if given.seed is None else given.seed
    configure_logging("ERROR")
    small_limits()
    failed = False
    with scratch_context(
        threads=1,  # forked processes must find no half of a thread pool
        commit_batch=2,
        job_lease_s=0.3,
        job_max_attempts=100,
        job_retry_base_s=0.05,
    ) as scratch:
        backbone = RememberedBackbone(scratch.backbone(scratch.settings.backbone))
        context = replace(scratch, backbone=lambda _name: backbone)
        ensure_live_generation(context)
        prepare(context)
        for of in given.of:
            began_s = time.monotonic()
            bench = Bench(context, of, given.kind, seed)
            measure(bench, given.faults, given.every, given.seconds)
            bench.sweep()
            problems = verify_index(reader(context)).problems
            found = figure(bench, len(problems), time.monotonic() - began_s, seed)
            sys.stdout.write(json.dumps(found) + "\n")
            sys.stderr.writelines(f"{problem}\n" for problem in problems)
            failed |= bool(found["value"] or problems)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
