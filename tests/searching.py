"""What tests of damage and erasure share: asking as a fresh process would, and harming files."""

from __future__ import annotations

from pathlib import Path

from tests.parts import HANDLERS, sql
from worker.accepting.queries import QueryState, query_state, submit_query
from worker.context import Context
from worker.core.search_params import SearchParams
from worker.core.types import Box
from worker.index.runs_file import let_go_of_runs
from worker.jobs import run_job


def fresh(context: Context) -> Context:
    """As another process sees it: nothing read before, nothing known to be damaged."""
    let_go_of_runs()
    return context.with_own_caches()


def flip(path: Path, offset: int, bit: int = 0) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ (1 << bit)]))


def asked(context: Context, *, uploaded: bool = False, **params: object) -> QueryState:
    """Search from the first frame, or from an upload of its picture."""
    frame_id, sha256 = sql(context, "select id, picture_sha256 from frames order by id limit 1")[0]
    given = {"group": "frame", "tau": -1.0, "close_looks": 0, **params}
    query_id = submit_query(
        context,
        Box(0.2, 0.2, 0.8, 0.8),
        SearchParams(**given),  # type: ignore[arg-type]
        frame_id=None if uploaded else frame_id,
        picture=context.pictures.path(sha256).read_bytes() if uploaded else None,
    )
    run_job(context, query_state(context, query_id).query.job_id, HANDLERS)
    state = query_state(context, query_id)
    assert state.state == "done", (state.error_code, state.error_detail)
    return state


def lost(state: QueryState) -> int:
    assert state.query.stats is not None
    return int(state.query.stats["frames_lost"])


def scores(state: QueryState) -> dict[int, float]:
    return {hit.frame_id: hit.score for hit in state.hits}
