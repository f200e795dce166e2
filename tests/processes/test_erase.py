"""Erasure as an operator does it, by order and by rule, on a RIS that runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.processes.harness import CLI, Ris

pytestmark = pytest.mark.slow


def frames(ris: Ris, camera: str) -> int:
    listed = {found["name"]: found["frames"] for found in ris.json("cameras")}
    return int(listed[camera])


def test_a_span_is_erased_and_its_receipt_stays(
    ris: Ris, footage: dict[str, Path], tmp_path: Path
) -> None:
    start = ("--start-time", "2026-02-01T12:00:00+00:00", "--every", "0.5")
    ris.run("ingest", str(footage["car"]), "--camera", "porch", *start)
    span = ("--from", "2026-02-01T12:00:01+00:00", "--to", "2026-02-01T12:00:03+00:00")
    said = ris.json("erase", "--camera", "porch", *span, "--note", "case 7", "--yes")
    assert [(one["frames"], one["state"], one["note"]) for one in said] == [(4, "done", "case 7")]
    assert frames(ris, "porch") == 4
    assert ris.json("verify")["problems"] == []
    listed = ris.run("erasures", "--json").stdout
    assert said[0] in json.loads(listed)
    kept = tmp_path / "erasures.json"
    kept.write_text(listed)
    again = ris.run("erase", "--again", str(kept), "--yes").stdout
    assert "carried out here already" in again
    assert "case 7" in ris.run("erasures").stdout


def test_it_asks_first_and_says_what_is_wrong(ris: Ris, two_cameras: object) -> None:
    import subprocess

    asked = subprocess.run(
        [*CLI, "erase", "--camera", "street"],
        env=ris.env,
        cwd=ris.cwd,
        input="n\n",
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert asked.returncode == 1
    assert "erase 20 frames of camera 'street'" in asked.stderr
    assert "cannot be undone" in asked.stderr and "nothing was erased" in asked.stderr
    for given, code in (
        (("--camera", "nowhere", "--yes"), "not_found"),
        (("--camera", "street", "--from", "noon", "--yes"), "input_invalid"),
        (("--camera", "street"), "input_invalid"),  # --json cannot ask
        ((), "input_invalid"),
        (("--again", "/nowhere.json", "--yes"), "input_invalid"),
    ):
        assert ris.json("erase", *given, expect=1)["error"]["code"] == code
    assert frames(ris, "street") == 20


def test_what_has_outlived_its_rule_goes_by_itself(ris: Ris, footage: dict[str, Path]) -> None:
    start = ("--start-time", "2026-02-01T12:00:00+00:00", "--every", "1.0")
    ris.run("ingest", str(footage["car"]), "--camera", "ruled", *start)
    ruled = ris.json("retention", "--camera", "ruled", "--days", "1")
    assert {"camera": "ruled", "days": 1, "own_rule": True} in ruled
    ris.eventually(lambda: frames(ris, "ruled") == 0, "its footage is gone")
    ris.eventually(
        lambda: any(
            (one["camera"], one["reason"], one["state"]) == ("ruled", "retention", "done")
            for one in ris.json("erasures")
        ),
        "its receipt is there",
    )
    assert "RIS_RETENTION_DAYS" in ris.run("retention", "--camera", "ruled", "--default").stdout
    assert ris.json("retention", "--camera", "ruled", expect=1)["error"]["code"] == "input_invalid"
    assert ris.json("verify")["problems"] == []
