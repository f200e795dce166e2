"""One running RIS for all of these tests; real workers, real services, short leases."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.processes.harness import Ris

STREET_START = "2026-01-01T12:00:00+00:00"
CAR_START = "2026-01-01T13:00:00+00:00"


@pytest.fixture(scope="session")
def backbones_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one tiny backbone of random weights, ``tiny``: 4 x 4 cells."""
    import torch
    from transformers import Dinov2Config, Dinov2Model

    folder = tmp_path_factory.mktemp("backbones")
    config = Dinov2Config(
        num_hidden_layers=2, num_attention_heads=2, hidden_size=24, image_size=32, patch_size=8
    )
    torch.manual_seed(7)
    Dinov2Model(config).save_pretrained(folder / "tiny")
    return folder


@pytest.fixture(scope="session")
def quick_settings(backbones_dir: Path) -> dict[str, str]:
    """Short leases and small batches: there is much to interrupt, soon."""
    return {
        "RIS_BACKBONES_DIR": str(backbones_dir),
        "RIS_JOB_LEASE_S": "3",
        "RIS_SWEEP_EVERY_S": "1",
        "RIS_RETAIN_EVERY_S": "1",
        "RIS_JOB_RETRY_BASE_S": "0.2",
        "RIS_COMMIT_BATCH": "2",
        "RIS_WATCH_EVERY_S": "0.5",
        "RIS_WATCH_SETTLE_S": "1",
        "RIS_FETCH_HOSTS": "127.0.0.0/8",
        "RIS_FEED_HOSTS": "127.0.0.0/8",
        "RIS_THREADS": "1",
        "RIS_WEBHOOK_HOSTS": "127.0.0.0/8",
    }


@pytest.fixture(scope="session")
def ris(tmp_path_factory: pytest.TempPathFactory, quick_settings: dict[str, str]) -> Iterator[Ris]:
    """RIS, up, for all tests."""
    folder = tmp_path_factory.mktemp("ris")
    running = Ris(folder / "var", quick_settings, cwd=folder)
    running.run("up")
    yield running
    running.run("down")


@dataclass(frozen=True)
class Indexed:
    """What `ris ingest` said about the two cameras."""

    street: dict[str, Any]
    car: dict[str, Any]


@pytest.fixture(scope="session")
def two_cameras(ris: Ris, footage: dict[str, Path]) -> Indexed:
    """Two real clips as two cameras, an hour apart."""
    street = _ingest(ris, footage["bikes"], "street", STREET_START)
    return Indexed(street, _ingest(ris, footage["car"], "car", CAR_START))


def _ingest(ris: Ris, clip: Path, camera: str, start: str) -> dict[str, Any]:
    said: dict[str, Any] = ris.json(
        "ingest", str(clip), "--camera", camera, "--start-time", start, "--every", "0.5"
    )
    return said


@pytest.fixture(scope="session")
def first_frame(ris: Ris, two_cameras: Indexed) -> int:
    """Id of the first frame of the street camera."""
    return int(
        ris.rows(
            "select f.id from frames f join cameras c on c.id = f.camera_id"
            " where c.name = 'street' order by f.pts limit 1"
        )[0][0]
    )
