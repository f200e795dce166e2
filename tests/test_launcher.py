"""The launcher `ris`: when it sets up, what it trusts, what it hands over."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Stands in for worker.admin in a copied checkout: says what it was given.
ECHO = """
import json, os, sys
print(json.dumps({"argv": sys.argv[1:], "cwd": os.getcwd(), "data": os.environ["RIS_DATA_DIR"],
                  "path0": sys.path[0]}))
"""


@pytest.fixture(scope="module")
def launcher() -> types.ModuleType:
    loader = importlib.machinery.SourceFileLoader("ris_launcher", str(ROOT / "ris"))
    spec = importlib.util.spec_from_loader("ris_launcher", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with a blank in its path and an echoing worker.admin, nothing installed."""
    root = tmp_path / "a check out"
    (root / "worker").mkdir(parents=True)
    (root / "worker" / "__init__.py").touch()
    (root / "worker" / "admin.py").write_text(ECHO)
    for name in ("ris", "requirements.lock", "requirements-dev.lock"):
        shutil.copy(ROOT / name, root / name)
    return root


def pretend_installed(launcher: types.ModuleType, root: Path, *, dev: bool = False) -> None:
    (root / ".venv" / "bin").mkdir(parents=True, exist_ok=True)
    python = root / ".venv" / "bin" / "python"
    python.unlink(missing_ok=True)
    python.symlink_to(sys.executable)
    launcher.touch(launcher.stamp_path(str(root), dev=dev))


def start(script: Path, *arguments: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(script), *arguments],
        cwd=cwd,
        env=os.environ | env,
        capture_output=True,
        text=True,
        check=False,
    )


def test_hands_over_arguments_from_another_folder_and_through_a_link(
    launcher, checkout, tmp_path, monkeypatch
):
    monkeypatch.delenv("RIS_DATA_DIR", raising=False)
    pretend_installed(launcher, checkout)
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "worker").mkdir(parents=True)  # must not be taken for ours
    (elsewhere / "worker" / "__init__.py").touch()
    link = tmp_path / "bin-ris"
    link.symlink_to(checkout / "ris")
    for script in (checkout / "ris", link):
        done = start(script, "ingest", "a file.mp4", "--json", cwd=elsewhere)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""  # nothing to set up: silent
        told = json.loads(done.stdout)
        assert told["argv"] == ["ingest", "a file.mp4", "--json"]
        assert told["cwd"] == str(elsewhere)
        assert told["data"] == str(checkout / "var")
        assert told["path0"] == str(checkout)
    chosen = start(checkout / "ris", "up", cwd=elsewhere, RIS_DATA_DIR="/srv/ris")
    assert json.loads(chosen.stdout)["data"] == "/srv/ris"


def test_stamp_counts_only_for_these_lock_files_and_a_finished_set_up(launcher, checkout):
    root = str(checkout)
    assert not launcher.is_set_up(root, dev=False)
    pretend_installed(launcher, checkout)
    assert launcher.is_set_up(root, dev=False)
    assert not launcher.is_set_up(root, dev=True)
    pretend_installed(launcher, checkout, dev=True)
    assert launcher.is_set_up(root, dev=True)

    with (checkout / "requirements-dev.lock").open("a") as lock:
        lock.write("another==1.0\n")
    assert launcher.is_set_up(root, dev=False)
    assert not launcher.is_set_up(root, dev=True)
    with (checkout / "requirements.lock").open("a") as lock:
        lock.write("another==1.0\n")
    assert not launcher.is_set_up(root, dev=False)

    pretend_installed(launcher, checkout)
    (checkout / ".venv" / launcher.UNFINISHED).touch()
    assert not launcher.is_set_up(root, dev=False)
    (checkout / ".venv" / launcher.UNFINISHED).unlink()
    (checkout / ".venv" / "bin" / "python").unlink()
    (checkout / ".venv" / "bin" / "python").symlink_to(checkout / "an uninstalled python")
    assert not launcher.is_set_up(root, dev=False)


@pytest.mark.slow
def test_a_set_up_that_fails_is_not_trusted_and_leftovers_are_made_anew(launcher, checkout):
    leftover = checkout / ".venv" / "leftover"
    leftover.parent.mkdir()
    leftover.touch()
    (checkout / ".venv" / launcher.UNFINISHED).touch()
    nowhere = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(checkout)}
    done = start(checkout / "ris", "up", cwd=checkout, **nowhere)
    assert done.returncode == 1
    assert "removing an unfinished .venv" in done.stderr
    assert "making .venv" in done.stderr
    assert "getting the installer (uv) failed" in done.stderr
    assert done.stdout == ""
    assert not leftover.exists()
    assert not launcher.is_set_up(str(checkout), dev=False)
    assert list((checkout / ".venv").glob(".ris-*")) == [checkout / ".venv" / launcher.UNFINISHED]


def test_torch_comes_from_a_folder_that_has_it_else_from_the_cpu_builds(launcher, checkout):
    wheels = checkout / "wheels"
    wheels.mkdir()
    root = str(checkout)

    def sources(**env: str) -> list[str]:
        found: list[str] = launcher.sources(root, env)
        return found

    links = ["--find-links", str(checkout.parent), "--find-links", "https://example.test/wheels"]
    assert sources() == ["--torch-backend", "cpu"]
    given = f"{checkout.parent}  https://example.test/wheels"
    # pip's own rule: entries are separated by blanks, so a folder's name has none.
    assert " " not in str(checkout.parent)
    assert sources(PIP_FIND_LINKS=given) == [*links, "--torch-backend", "cpu"]

    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    pinned = re.search(r"^torch==(.+)$", (checkout / "requirements.lock").read_text(), re.MULTILINE)
    assert pinned is not None
    for name, taken in (
        (f"torch-{pinned[1]}+cpu-cp39-cp39-linux_x86_64.whl", False),
        (f"torch-0.1-{python}-{python}-linux_x86_64.whl", False),
        (f"torch-{pinned[1]}+cpu-{python}-{python}-linux_x86_64.whl", True),
    ):
        wheel = checkout.parent / name
        wheel.touch()
        assert (sources(PIP_FIND_LINKS=given) == links) == taken, name
        wheel.unlink(missing_ok=not taken)
    wheel.touch()
    asked = sources(PIP_FIND_LINKS=given, RIS_TORCH_BACKEND="cu128")
    assert asked == [*links, "--torch-backend", "cu128"]


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text().splitlines()
    found = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    return {package: version.strip() for package, version in found.items()}


def test_lock_files_agree_and_hold_versions_only():
    runtime, dev = pins("requirements.lock"), pins("requirements-dev.lock")
    assert {name: dev.get(name) for name in runtime} == runtime
    assert "pytest" in dev
    assert "pytest" not in runtime
    assert "+" not in runtime["torch"]
    assert "faiss-gpu" not in dev
    for name in ("requirements.lock", "requirements-dev.lock"):
        text = (ROOT / name).read_text()
        assert "--hash" not in text
        assert "://" not in text


def test_lock_files_cover_what_pyproject_asks_for():
    import tomllib

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = {
        "requirements.lock": [*project["dependencies"], *extras["cpu"], *extras["demo"]],
        "requirements-dev.lock": extras["dev"],
    }
    for lock, requirements in asked.items():
        pinned = pins(lock)
        for requirement in map(Requirement, requirements):
            name = canonicalize_name(requirement.name)
            assert name in pinned, f"{name} is missing in {lock}"
            assert requirement.specifier.contains(pinned[name]), f"{lock}: {name} {pinned[name]}"


def test_an_old_python_is_told_which_one_is_needed(monkeypatch):
    code = compile((ROOT / "ris").read_text(), "ris", "exec")
    monkeypatch.setattr(sys, "version_info", (3, 9, 2, "final", 0))
    with pytest.raises(SystemExit, match=r"needs Python 3\.11 or newer, this is 3\.9"):
        exec(code, {"__name__": "__main__", "__file__": str(ROOT / "ris")})
