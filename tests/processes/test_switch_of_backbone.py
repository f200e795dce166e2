"""`ris reindex` with another backbone while queries go on. Last of these tests: it loads slowly."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.processes.harness import PATIENCE_S, REPO

pytestmark = pytest.mark.slow


def test_queries_are_answered_all_through_a_reindex(ris, first_frame, tmp_path):
    (before,) = ris.rows("select id, backbone from index_generations where state = 'live'")[0:1]
    answers_path, errors_path = tmp_path / "answers", tmp_path / "errors"

    def answers() -> list[dict[str, int]]:
        return [json.loads(line) for line in answers_path.read_text().splitlines()]

    with answers_path.open("w") as out, errors_path.open("w") as errors:
        loop = subprocess.Popen(
            [sys.executable, "-m", "tests.processes.query_loop", str(first_frame)],
            cwd=REPO,
            env=ris.env,
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=errors,
        )
    ris.eventually(lambda: loop.poll() is not None or answers(), "a query is answered before")
    said = ris.json("reindex", "--backbone", "tiny")
    assert said["job"]["state"] == "done", said
    ris.eventually(
        lambda: (
            loop.poll() is not None
            or any(answer["generation"] == said["generation_id"] for answer in answers())
        ),
        "the new generation answers",
    )
    assert loop.stdin is not None
    loop.stdin.close()
    assert loop.wait(PATIENCE_S) == 0, errors_path.read_text()
    generations = [answer["generation"] for answer in answers()]
    assert set(generations) == {before[0], said["generation_id"]}
    assert generations == sorted(generations)
    assert all(answer["hits"] > 0 for answer in answers())
    assert ris.json("verify")["problems"] == []
