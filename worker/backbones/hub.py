"""Weights from the hub: its cache first, one quick look whether it answers, then the download."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from worker.errors import WeightsMissing

PROBE_S = 5.0


def hub_folder(name: str, hub_id: str, revision: str, looked: list[str]) -> Path:
    """Folder of the snapshot of ``hub_id`` at ``revision``, fetched if it must and can be.

    ``looked``: places already tried, for the message. Raises ``WeightsMissing`` when it is not
    cached and ``HF_HUB_OFFLINE`` is set, the hub does not answer, or the hub refuses.
    """
    looked = [*looked, f"hub cache {hub_cache_dir()}"]
    try:
        return _fetch(hub_id, revision, only_cached=True)
    except OSError as error:
        if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
            raise weights_missing(name, hub_id, looked, "HF_HUB_OFFLINE is set") from error
    looked.append(f"hub {hub_id} at {revision}")
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        # the hub client itself retries for half a minute per file
        urllib.request.urlopen(endpoint, timeout=PROBE_S).close()  # noqa: S310
    except urllib.error.HTTPError:
        pass  # it answers
    except (OSError, ValueError) as error:
        why = f"the hub cannot be reached: {error}"
        raise weights_missing(name, hub_id, looked, why) from error
    try:
        return _fetch(hub_id, revision, only_cached=False)
    except OSError as error:
        raise weights_missing(name, hub_id, looked, str(error).strip()) from error


def hub_cache_dir() -> Path:
    """Where the hub client keeps files, by its own environment variables."""
    home = os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub")


def hub_snapshots(hub_id: str) -> Iterator[Path]:
    """Cached snapshot folders of one repository; each is named after its commit."""
    return (hub_cache_dir() / f"models--{hub_id.replace('/', '--')}" / "snapshots").glob("*")


def weights_missing(name: str, hub_id: str | None, looked: list[str], why: str) -> WeightsMissing:
    """The error that names the backbone, the places looked at and the remedy."""
    remedy = f"put its folder (config.json, *.safetensors) at RIS_BACKBONES_DIR/{name}"
    if hub_id is not None:
        remedy += f", or run once with network access to fetch {hub_id}"
    return WeightsMissing(
        f"Weights of backbone {name} are missing ({why}). Looked at: {'; '.join(looked)}. "
        f"To fix: {remedy}."
    )


def _fetch(hub_id: str, revision: str, *, only_cached: bool) -> Path:
    """Config, preprocessing and safetensors. Raises ``OSError`` when a needed one is absent."""
    from transformers.utils.hub import cached_file

    def get(filename: str, *, required: bool = True) -> str | None:
        path: str | None = cached_file(
            hub_id,
            filename,
            revision=revision,
            cache_dir=str(hub_cache_dir()),
            local_files_only=only_cached,
            _raise_exceptions_for_missing_entries=required,
        )
        return path

    get("config.json")
    get("preprocessor_config.json", required=False)
    weights = get("model.safetensors")
    if weights is None:
        raise OSError(f"{hub_id} has no model.safetensors")
    return Path(weights).parent
