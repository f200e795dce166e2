"""The benchmark of a GPU runs where torch, transformers and numpy are all there is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ABSENT = (
    "alembic", "av", "celery", "cryptography", "efficientnet_lite_pytorch", "faiss", "fastapi",
    "isal", "kombu", "numba", "prometheus_client", "psycopg", "pydantic", "pydantic_settings",
    "redis", "sqlalchemy", "structlog", "threadpoolctl", "typer",
)  # fmt: skip


def test_a_miniature_of_its_search_runs_without_our_other_packages():
    code = (
        "import sys, runpy\n"
        f"sys.modules.update(dict.fromkeys({ABSENT!r}))\n"  # importing them raises
        "sys.argv = ['gpu', '--part', 'search', '--device', 'cpu']\n"
        "runpy.run_module('benchmarks.gpu', run_name='__main__')"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    told = [json.loads(line) for line in ran.stdout.splitlines()]
    names = " ".join(figure["name"] for figure in told)
    for figure in ("copy-on-device", "stage-2-", "scan-", "two-stage-", "faiss-gpu"):
        assert figure in names
    assert all("no GPU figure" in figure["note"] for figure in told)
