"""Single bits flipped and files cut in every kind of file: is all of it found, and no hit wrong?

    .venv/bin/python -m benchmarks.flip_bits [--trials 1000] [--seed 1]

An index of two short clips with the default backbone. Half of its shards are sealed and took more
frames afterwards; all have their codes. Each trial harms one file of one kind at a random place
(every fifth cuts it): vectors, sealed ones, codes, kept pictures, uploads, terms. Then a new reader
searches, and `ris verify` looks. Found means that verify names the file, and besides: for vectors,
that a MaxSim over all frames says it is degraded, and gives no hit that the sound index does not
give with the same score; for codes, that the default search gives the sound index's answer; for an
upload, that the query made from it ends with a typed error. The peer is the number of trials.
Prints one JSON object; exit 1 when anything was missed or wrong.
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
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

from benchmarks.disturbed import START, compact, seal, small_limits
from benchmarks.machine import machine
from benchmarks.scratch import reader, scratch_context
from models.repositories import search as search_record
from models.repositories import videos as video_record
from worker.accepting.queries import QueryState, query_state, submit_query
from worker.admin.demo import packaged_footage
from worker.context import Context
from worker.core.sampling import IntervalPolicy
from worker.core.search_params import SearchParams, Strategy
from worker.core.types import Box
from worker.ingest import fail_ingest, run_ingest, submit_file
from worker.jobs import Handler, run_job
from worker.logs import configure_logging
from worker.search import run_query
from worker.verify import verify_index

HANDLERS = {"ingest": Handler(run_ingest, fail_ingest), "query": Handler(run_query)}
PARAMS = SearchParams(tau=-1.0, limit=1000, group="frame", close_looks=0)
EVERYTHING = replace(PARAMS, strategy=Strategy.MAX_SIM, top_n=10_000)
DEFAULT = replace(PARAMS, top_n=4, tau=None)
ROI = Box(0.3, 0.3, 0.6, 0.8)
EVERY_S = 1.0
LATE_EVERY_S = 2.0
TYPED = ("index_damaged", "not_found")
Scores = dict[int, float]


def build(context: Context) -> None:
    """Two cameras with a sealed shard and frames behind it, and a shard that is not sealed."""

    def ingest(every_s: float, minutes: int) -> None:
        for clip in packaged_footage():
            made = submit_file(
                context,
                clip.path,
                clip.camera,
                IntervalPolicy(every_s),
                start_utc=START + timedelta(minutes=minutes),
            )
            run_job(context, uuid.UUID(made.job_id), HANDLERS)

    ingest(EVERY_S, 0)
    compact(context)
    seal(context)
    ingest(LATE_EVERY_S, 5)
    ingest(EVERY_S, 120)
    compact(context)


def answered(context: Context, query_id: uuid.UUID) -> QueryState:
    run_job(context, query_state(context, query_id).query.job_id, HANDLERS)
    return query_state(context, query_id)


def ask(context: Context, params: SearchParams, picture: bytes) -> tuple[Scores, int]:
    """Scores by frame, and how many frames the answer says were lost."""
    state = answered(context, submit_query(context, ROI, params, picture=picture))
    if state.state != "done" or state.query.stats is None:
        raise SystemExit(f"a query failed: {state.error_code} {state.error_detail}")
    scores = {hit.frame_id: round(hit.score, 6) for hit in state.hits}
    return scores, int(state.query.stats["frames_lost"])


@dataclass(frozen=True, slots=True)
class Sound:
    """What the sound index answers to a picture: over everything, and by the default search."""

    picture: bytes
    whole: Scores
    default: Scores


Found = tuple[bool, int]
"""Whether an answer tells of the harm, or is none the worse for it; and how many hits are wrong."""


def of_vectors(context: Context, sound: Sound, _path: Path) -> Found:
    scores, lost = ask(context, EVERYTHING, sound.picture)
    wrong = sum(scores[frame_id] != sound.whole.get(frame_id) for frame_id in scores)
    return lost > 0, wrong + (len(sound.whole) - lost > len(scores))


def of_codes(context: Context, sound: Sound, _path: Path) -> Found:
    scores, lost = ask(context, DEFAULT, sound.picture)
    same = scores == sound.default
    return same and lost == 0, int(not same)


def of_pictures(_context: Context, _sound: Sound, _path: Path) -> Found:
    return True, 0  # no search looks at them, or closer at boxes only


def of_terms(_context: Context, _sound: Sound, _path: Path) -> Found:
    return True, 0  # only evidence is made of what a search knew, and says so where it is harmed


def of_uploads(context: Context, sound: Sound, path: Path) -> Found:
    """The query was accepted before the harm, and is carried out after it."""
    content = path.read_bytes()
    path.write_bytes(sound.picture)
    query_id = submit_query(context, ROI, DEFAULT, picture=sound.picture)
    path.write_bytes(content)
    return answered(context, query_id).error_code in TYPED, 0


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


CHECKS: dict[str, Callable[[Context, Sound, Path], Found]] = {
    "global.vec": of_vectors,
    "patch.vec": of_vectors,
    "patch.runs": of_vectors,
    "codes.vec": of_codes,
    "codes.runs": of_codes,
    "picture": of_pictures,
    "upload": of_uploads,
    "terms": of_terms,
}


def measure(context: Context, trials: int, seed: int, end_s: float) -> dict[str, object]:
    chance = random.Random(seed)
    build(context)
    with context.db.transaction() as session:
        hashes = sorted(video_record.picture_hashes(session))
    picture = context.pictures.path(hashes[0]).read_bytes()
    default, _ = ask(reader(context), DEFAULT, picture)
    whole, lost = ask(reader(context), EVERYTHING, picture)
    assert lost == 0 and whole and default
    sound = Sound(picture, whole, default)
    files = {name: sorted(context.index.root.rglob(name)) for name in CHECKS}
    files["picture"] = [context.pictures.path(sha256) for sha256 in hashes]
    with context.db.transaction() as session:
        for query_id in search_record.recent_queries(session, 2):
            query = search_record.find_query(session, query_id)
            assert query is not None
            files["upload"] = [context.uploads.root / str(query.picture_sha256)]
            files["terms"].append(context.uploads.root / str(query.terms_sha256))
    assert all(files.values()), "every kind of file is there"
    done: Counter[str] = Counter()
    missed: Counter[str] = Counter()
    wrong_hits = 0
    for trial in range(trials):
        if time.monotonic() > end_s:
            break
        kind = chance.choice(list(files))
        path = chance.choice(files[kind])
        content = path.read_bytes()
        what = f"{kind} {harm(path, chance, cut=trial % 5 == 4)}"
        done[what] += 1
        told, wrong = CHECKS[kind](reader(context), sound, path)
        named = any(str(path) in problem for problem in verify_index(reader(context)).problems)
        if not (told and named):
            sys.stderr.write(f"{what}: {path} told {told} named {named}\n")
            missed[what] += 1
        wrong_hits += wrong
        path.write_bytes(content)
    return {
        "n": done.total(),
        "missed": missed.total(),
        "wrong_hits": wrong_hits,
        "trials": dict(done),
        "missed_by_kind": dict(missed),
        "frames": len(whole),
        "files": {kind: len(paths) for kind, paths in files.items()},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after that")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    began_s = time.monotonic()
    configure_logging("CRITICAL")
    small_limits()
    with scratch_context() as context:
        found = measure(context, given.trials, given.seed, began_s + given.seconds)
        clean = verify_index(context).problems == ()
    figure = {
        "name": "damage_missed",
        "value": found["missed"],
        "unit": "trials",
        "peer": "trials",
        "peer_value": found["n"],
        "ratio": None,
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
