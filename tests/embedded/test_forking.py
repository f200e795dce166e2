"""Children that are copies of their supervisor: what they have, and what they have not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from worker.embedded.child_process import is_alive
from worker.embedded.children import REPO_ROOT
from worker.embedded.forking import OF_API, OF_WORKERS, module_of

TELLS = """
import json, os, signal, sys
from pathlib import Path
import worker.config
print("in the log")
print("errors too", file=sys.stderr)
blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
Path(os.environ["TOLD"]).write_text(json.dumps({
    "argv": sys.argv, "env": sorted(os.environ), "cwd": os.getcwd(), "name": __name__,
    "session": os.getsid(0) == os.getpid(), "stdin": sys.stdin.read(),
    "files": [fd for fd in os.listdir("/proc/self/fd") if int(fd) > 2
              and os.path.exists(f"/proc/self/fd/{fd}")],
    "blocked": len(blocked), "term": signal.getsignal(signal.SIGTERM) == signal.SIG_DFL,
    "title": Path("/proc/self/cmdline").read_text().rstrip("\\0 "),
    "data_dir": str(worker.config.settings().data_dir),
}))
"""


def parent(tmp_path: Path, child: str, then: str, **env: str) -> subprocess.Popen[str]:
    """A process that forks ``child``, a module, as ``made`` and goes on with ``then``."""
    (tmp_path / "made_up.py").write_text(textwrap.dedent(child))
    script = f"""
import os, signal, sys, time
from pathlib import Path
sys.path.insert(0, {str(tmp_path)!r})
from worker.config import settings
from worker.embedded.forking import fork_module, preload
assert preload(("json",))
settings()
held = open({str(tmp_path / "held")!r}, "w")
signal.signal(signal.SIGTERM, lambda *_: None)
made = fork_module(
    ["made_up", "--one", "2"], title="ris made-up", log_path=Path({str(tmp_path / "log")!r}),
    cwd=Path({str(tmp_path)!r}), env={{"TOLD": {str(tmp_path / "told")!r}, **{env!r}}},
    death_signal=signal.SIGKILL,
)
{textwrap.dedent(then)}
"""
    return subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=REPO_ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def said(process: subprocess.Popen[str]) -> str:
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    return out.strip()


def test_a_child_is_as_if_started_anew(tmp_path):
    env = {"RIS_DATA_DIR": str(tmp_path / "other")}
    assert said(parent(tmp_path, TELLS, "print(made.wait(), made.poll())", **env)) == "0 0"
    told: dict[str, Any] = json.loads((tmp_path / "told").read_text())
    assert told.pop("argv")[1:] == ["--one", "2"]
    assert told == {
        "name": "__main__",
        "env": ["RIS_DATA_DIR", "TOLD"],
        "cwd": str(tmp_path),
        "session": True,
        "stdin": "",
        "files": [],
        "blocked": 0,
        "term": True,
        "title": "ris made-up",
        "data_dir": str(tmp_path / "other"),
    }
    assert sorted((tmp_path / "log").read_text().split("\n")) == ["", "errors too", "in the log"]


@pytest.mark.parametrize(
    ("child", "status", "logged"),
    [
        ("raise SystemExit(3)", 3, ""),
        ("raise SystemExit", 0, ""),
        ("raise SystemExit('no such thing')", 1, "no such thing"),
        ("raise KeyError('what')", 1, "KeyError: 'what'"),
        ("import no_such_module_at_all", 1, "ModuleNotFoundError"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -9, ""),
        (  # a thread that still works is waited for, as the interpreter does
            "import threading, time\n"
            "threading.Thread(target=lambda: (time.sleep(0.3), print('worked'))).start()",
            0,
            "worked",
        ),
    ],
)
def test_how_a_child_ended_is_told(tmp_path, child: str, status: int, logged: str):
    assert said(parent(tmp_path, child, "print(made.wait())")) == str(status)
    assert logged in (tmp_path / "log").read_text()


SLEEPS = "import time\ntime.sleep(600)"


def test_a_child_can_be_told_to_end_at_once(tmp_path):
    """Also in its first moment: none of its parent's handlers is left."""
    then = """
    made.terminate()
    try:
        made.wait(20)
    finally:
        print(made.poll())
    made.terminate()  # gone already
    """
    assert said(parent(tmp_path, SLEEPS, then)) == str(-signal.SIGTERM)


def test_waiting_ends_in_time(tmp_path):
    then = """
    import subprocess
    try:
        made.wait(0.1)
    except subprocess.TimeoutExpired:
        print("late", made.poll())
    """
    assert said(parent(tmp_path, SLEEPS, then)) == "late None"


def test_a_child_dies_with_its_parent(tmp_path):
    process = parent(tmp_path, SLEEPS, "print(made.pid, flush=True); time.sleep(600)")
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    assert is_alive(pid)
    process.kill()
    process.communicate()
    deadline_s = time.monotonic() + 20
    while is_alive(pid):
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def test_what_cannot_be_shared_is_started_as_ever(tmp_path):
    code = """
    import sys
    sys.path.insert(0, {folder!r})
    from worker.embedded.forking import preload
    print(preload(("json", "no_such_module_at_all")), preload(("starts_a_thread",)))
    """
    (tmp_path / "starts_a_thread.py").write_text(
        "import threading, time\n"
        "threading.Thread(target=time.sleep, args=[600], daemon=True).start()\n"
    )
    shown = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code.format(folder=str(tmp_path)))],
        cwd=REPO_ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert shown.stdout.split() == ["False", "False"]
    assert "no_such_module_at_all" in shown.stderr


def test_what_is_shared_needs_no_settings_and_starts_no_thread(tmp_path):
    """Settings are a child's own, and threads are not copied."""
    code = f"""
    import sys, threading
    from worker.embedded.forking import preload
    print(preload({(*OF_WORKERS, *OF_API)!r}), "worker.app" in sys.modules,
          "worker.tasks" in sys.modules, threading.active_count())
    import torch
    print(torch.cuda.is_initialized())
    """
    shown = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=REPO_ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env={"PATH": os.environ["PATH"], "RIS_LOG_LEVEL": "nonsense"},  # no settings could be made
    )
    assert shown.stdout.split() == ["True", "False", "False", "1", "False"]


def test_commands_that_are_modules():
    assert module_of([sys.executable, "-m", "celery", "-A", "x"]) == ["celery", "-A", "x"]
    assert module_of([sys.executable, "-c", "pass"]) is None
    assert module_of(["setpriv", "-m", "x"]) is None
