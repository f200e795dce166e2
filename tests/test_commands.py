"""The command line as a program: what a command has to load before it answers."""

from __future__ import annotations

import subprocess
import sys

import pytest

from worker.admin.cli import COMMANDS

HEAVY = "celery, faiss, numba, redis, torch, transformers"


@pytest.mark.parametrize("command", ["cameras", "keys", "feed"])
def test_a_listing_waits_for_no_search_engine(command: str) -> None:
    module = COMMANDS[command].split(":")[0]
    code = (
        f"import sys, worker.admin.cli, worker.admin.{module}\n"
        f"print(*(name for name in {HEAVY.split(', ')} if name in sys.modules))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert shown.stdout.split() == []


def test_an_unknown_command_is_refused() -> None:
    asked = subprocess.run(
        [sys.executable, "-m", "worker.admin", "serach"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert asked.returncode == 2
    assert "No such command 'serach'" in asked.stderr
