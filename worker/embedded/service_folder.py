"""Small files an embedded service remembers between starts: its password and its port."""

from __future__ import annotations

import importlib.util
import os
import secrets
from pathlib import Path

from worker.embedded.child_process import RunAs
from worker.errors import SetupFailed

_PRIVATE = 0o600


def binaries(package: str, *inside: str) -> Path:
    """The folder of executables a wheel ships, found without importing the wheel's own helpers.

    Raises :class:`SetupFailed` when the package or the folder is missing.
    """
    found = importlib.util.find_spec(package)
    places = list(found.submodule_search_locations or []) if found else []
    folder = Path(places[0]).joinpath(*inside) if places else None
    if folder is None or not folder.is_dir():
        raise SetupFailed(
            f"the package {package} is not installed or has no {'/'.join(inside)}:"
            " run `./ris doctor`, or give the service by RIS_DATABASE_URL / RIS_BROKER_URL"
        )
    return folder


def write_private(path: Path, text: str, owner: RunAs | None = None) -> None:
    """Replace ``path`` in one step by a file that only its owner may read (mode 0600)."""
    draft = path.with_name(path.name + ".new")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _PRIVATE)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    if owner is not None:
        os.chown(draft, owner.uid, owner.gid)
    draft.replace(path)


def remembered_password(folder: Path, owner: RunAs | None = None) -> str:
    """The password in ``folder/password``; a random one is made on first use."""
    path = folder / "password"
    if not path.exists():
        write_private(path, secrets.token_urlsafe(24), owner)
    return path.read_text().strip()


def remembered_port(folder: Path) -> int | None:
    """The port of the last start, so that URLs stay valid over a restart."""
    try:
        return int((folder / "port").read_text())
    except (FileNotFoundError, ValueError):
        return None


def remember_port(folder: Path, port: int) -> None:
    """Keep ``port`` for the next start."""
    write_private(folder / "port", f"{port}\n")


def first_line_as_pid(path: Path) -> int | None:
    """The pid in the first line of a pid file, None when there is none."""
    try:
        return int(path.read_text().splitlines()[0])
    except (FileNotFoundError, ValueError, IndexError):
        return None
