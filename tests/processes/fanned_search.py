"""Searches in one process, then through scan workers; waits for a line of standard input before it
asks them. Prints what both found and how many groups answered."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from worker.context import Context
from worker.core.search_params import SearchParams
from worker.core.types import Box
from worker.describe import describe_query
from worker.generations import require_live_generation
from worker.ranked_frame import QueryDescriptors
from worker.runtime import process_context
from worker.scan_message import Json
from worker.search import search_generation

PARAMS = SearchParams(top_n=4)


def main(frame_id: int) -> None:
    context = process_context()
    assert context.fan_out is not None
    generation = require_live_generation(context)
    described = describe_query(
        context,
        generation,
        Box(0.2, 0.2, 0.8, 0.8),
        PARAMS,
        frame_id=frame_id,
        picture_sha256=None,
    )
    counts = {"asked": 0, "answered": 0}
    real = context.fan_out.ask

    def ask(messages: Sequence[tuple[str, Json]], wait_s: float) -> Iterator[tuple[int, Json]]:
        counts["asked"] += len(messages)
        sys.stdout.write("asking\n")
        sys.stdout.flush()
        sys.stdin.readline()
        for answer in real(messages, wait_s):
            counts["answered"] += 1
            yield answer

    alone = found(replace(context, fan_out=None), described, frame_id)
    spread = found(replace(context, fan_out=replace(context.fan_out, ask=ask)), described, frame_id)
    said = {"alone": alone, "spread": spread, **counts}
    sys.stdout.write(json.dumps(said) + "\n")


def found(context: Context, described: QueryDescriptors, frame_id: int) -> list[list[Any]]:
    generation = require_live_generation(context)
    searched = search_generation(
        context, generation, described, PARAMS, exclude_frame_id=frame_id, regions_for=10
    )
    return [
        [one.frame_id, one.score, one.stage1_score, one.global_score, one.false_matches]
        for one in searched.ranked
    ]


if __name__ == "__main__":
    main(int(sys.argv[1]))
