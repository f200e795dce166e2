"""Single bits flipped and files cut in every kind of file: is all of it found, and no hit wrong?

    .venv/bin/python -m benchmarks.flip_bits [--trials 1000] [--seed 1]

An index of two short clips with the default backbone. Each trial harms one vector file or one kept
picture at a random place (every fifth cuts it), then a new reader searches with MaxSim over all
frames, and `ris verify` looks. Found means: verify names the file, and for a vector file the answer
says that it is degraded. A wrong hit is one that the sound index does not give with the same score.
The peer is the number of trials. Prints one JSON object; exit 1 when anything was missed or wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
import uuid
from collections import Counter
from dataclasses import replace
from pathlib import Path

from benchmarks.machine import machine
from benchmarks.scratch import scratch_context
from models.repositories import videos as video_record
from worker.admin.demo import packaged_footage
from worker.context import Context
from worker.core.sampling import IntervalPolicy
from worker.core.search_params import SearchParams, Strategy
from worker.core.types import Box
from worker.index.compact_cache import CompactCache
from worker.index.damage import KnownDamage
from worker.index.store import IndexStore
from worker.ingest import fail_ingest, run_ingest, submit_file
from worker.jobs import Handler, run_job
from worker.logs import configure_logging
from worker.pinning import FMapCache
from worker.search import query_state, run_query, submit_query
from worker.verify import verify_index

HANDLERS = {"ingest": Handler(run_ingest, fail_ingest), "query": Handler(run_query)}
PARAMS = SearchParams(strategy=Strategy.MAX_SIM, tau=-1.0, top_n=10_000, limit=1000, group="frame")
EVERY_S = 1.0


def reader(context: Context) -> Context:
    """As a process that starts now sees it."""
    return replace(
        context,
        index=IndexStore(context.index.root),
        f_maps=FMapCache(),
        compact=CompactCache(),
        damage=KnownDamage(),
    )


def ask(context: Context, picture: bytes) -> tuple[dict[int, float], int]:
    """Scores by frame, and how many frames the answer says were lost."""
    params = replace(PARAMS, close_looks=0)
    query_id = submit_query(context, Box(0.3, 0.3, 0.6, 0.8), params, picture=picture)
    run_job(context, query_state(context, query_id).query.job_id, HANDLERS)
    state = query_state(context, query_id)
    if state.state != "done" or state.query.stats is None:
        raise SystemExit(f"a query failed: {state.error_code} {state.error_detail}")
    scores = {hit.frame_id: round(hit.score, 6) for hit in state.hits}
    return scores, int(state.query.stats["frames_lost"])


def harm(path: Path, chance: random.Random, *, cut: bool) -> str:
    content = path.read_bytes()
    if cut:
        os.truncate(path, chance.randrange(len(content)))
        return "cut"
    at = chance.randrange(len(content))
    changed = bytearray(content)
    changed[at] ^= 1 << chance.randrange(8)
    path.write_bytes(changed)
    return "flipped"


def measure(context: Context, trials: int, seed: int) -> dict[str, object]:
    chance = random.Random(seed)
    for clip in packaged_footage():
        made = submit_file(context, clip.path, clip.camera, IntervalPolicy(EVERY_S))
        run_job(context, uuid.UUID(made.job_id), HANDLERS)
    with context.db.transaction() as session:
        hashes = sorted(video_record.picture_hashes(session))
    picture = context.pictures.path(hashes[0]).read_bytes()
    whole, lost = ask(reader(context), picture)
    assert lost == 0 and whole
    vectors = sorted(context.index.root.rglob("*.vec"))
    pictures = [context.pictures.path(sha256) for sha256 in hashes]
    done: Counter[str] = Counter()
    missed = wrong = 0
    for trial in range(trials):
        path = chance.choice(vectors if trial % 4 else pictures)
        content = path.read_bytes()
        what = harm(path, chance, cut=trial % 5 == 4)
        done[f"{path.suffix[1:] if path in pictures else path.name} {what}"] += 1
        scores, lost = ask(reader(context), picture)
        named = any(str(path) in problem for problem in verify_index(context).problems)
        missed += not named or (path in vectors and lost == 0)
        wrong += sum(scores[frame_id] != whole.get(frame_id) for frame_id in scores)
        wrong += len(whole) - lost > len(scores)
        path.write_bytes(content)
    return {"missed": missed, "wrong_hits": wrong, "trials": dict(done), "frames": len(whole)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    began_s = time.monotonic()
    configure_logging("CRITICAL")
    with scratch_context() as context:
        found = measure(context, given.trials, given.seed)
        clean = verify_index(context).problems == ()
    figure = {
        "name": "damage_missed",
        "value": found["missed"],
        "unit": "trials",
        "peer": "trials",
        "peer_value": given.trials,
        "ratio": None,
        "n": given.trials,
        "machine": machine(),
        **found,
        "clean_afterwards": clean,
        "seconds": round(time.monotonic() - began_s, 1),
        "seed": given.seed,
    }
    sys.stdout.write(json.dumps(figure) + "\n")
    return int(bool(found["missed"] or found["wrong_hits"] or not clean))


if __name__ == "__main__":
    sys.exit(main())
