"""Packages that exclude each other, and are looked at before they are used."""

from __future__ import annotations

import importlib.metadata
from importlib.util import find_spec

from worker.errors import SetupFailed

FAISS_PACKAGES = ("faiss-cpu", "faiss-gpu", "faiss-gpu-cuvs")
_REMEDY = (
    "exactly one must be: they install the same folder, and the later one overwrites the other. "
    "`pip uninstall -y faiss-cpu faiss-gpu`, then install RIS with the extra cpu or the extra gpu"
)


def faiss_packages() -> list[str]:
    """Names and versions of those that are installed."""
    found = []
    for name in FAISS_PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def require_one_faiss(found: list[str] | None = None) -> None:
    """Raise ``SetupFailed`` with several packages of FAISS, or without any; ``found``: those
    installed. One that was built by hand, which no package names, will do."""
    installed = faiss_packages() if found is None else found
    if len(installed) > 1:
        raise SetupFailed(f"{' and '.join(installed)} are installed: {_REMEDY}.")
    if not installed and find_spec("faiss") is None:
        raise SetupFailed(f"no package of FAISS is installed: {_REMEDY}.")
