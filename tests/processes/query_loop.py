"""Asks the same query again and again until its standard input closes; one line per answer."""

from __future__ import annotations

import json
import select
import sys
import time

from worker.accepting.queries import submit_query
from worker.admin.query import wait_for_query
from worker.core.geometry import roi_from_xyxy
from worker.core.search_params import SearchParams
from worker.runtime import process_context


def main(frame_id: int) -> None:
    context = process_context()
    roi = roi_from_xyxy([0.25, 0.25, 0.75, 0.75])
    while not select.select([sys.stdin], [], [], 0.2)[0]:
        began_s = time.monotonic()
        query_id = submit_query(context, roi, SearchParams(), frame_id=frame_id)
        answer = wait_for_query(context, query_id, timeout_s=60)
        line = {
            "generation": answer.query.generation_id,
            "hits": len(answer.hits),
            "seconds": time.monotonic() - began_s,
        }
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]))
