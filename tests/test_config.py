"""Settings come from RIS_* variables and refuse what cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from worker.admin.services import up
from worker.config import Settings, settings
from worker.errors import InputInvalid, SetupFailed
from worker.index.faiss_report import describe_faiss
from worker.installed import require_one_faiss
from worker.video.hardware import describe_hardware_decoding


@pytest.fixture(autouse=True)
def no_ris_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in os.environ:
        if name.startswith("RIS_"):
            monkeypatch.delenv(name)


def test_variables_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "RIS_DATABASE_URL": "postgresql://u:p@h/d",
        "RIS_DATA_DIR": "/data/ris",
        "RIS_COMMIT_BATCH": "7",
        "RIS_CODEC": "fp32",
        "RIS_JOB_LEASE_S": "2.5",
        "ris_backbones_dir": "/weights",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    read = Settings()
    assert read.database_url == "postgresql://u:p@h/d"
    assert (read.data_dir, read.backbones_dir) == (Path("/data/ris"), Path("/weights"))
    assert (read.commit_batch, read.codec, read.job_lease_s) == (7, "fp32", 2.5)


def test_empty_variables_are_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compose files pass ``RIS_X=`` for what the user left out."""
    monkeypatch.setenv("RIS_DATABASE_URL", "")
    monkeypatch.setenv("RIS_COMMIT_BATCH", "")
    assert Settings().database_url is None
    assert Settings().commit_batch == 32


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("commit_batch", "0", "greater than or equal to 1"),
        ("commit_batch", "many", "valid integer"),
        ("codec", "int4", "'fp32', 'fp16' or 'int8'"),
        ("dtype", "float64", "'float32', 'bfloat16' or 'float16'"),
        ("job_lease_s", "nan", "less than or equal to 3600"),
        ("job_lease_s", "-1", "greater than 0.2"),
        ("job_lease_s", "inf", "less than or equal to 3600"),
        ("picture_quality", "101", "less than or equal to"),
        ("shard_span_s", "59", "greater than or equal to 60"),
        ("threads", "-1", "greater than or equal to 0"),
        ("s3_url", "https://bucket", "should match pattern"),
        ("s3_url", "s3://", "should match pattern"),
        ("s3_url", "s3://bucket/a?b", "should match pattern"),
        ("s3_endpoint", "http://key:secret@host", "should match pattern"),
        ("s3_cache_bytes", "-1", "greater than or equal to 0"),
        ("log_level", "LOUD", "'DEBUG'"),
        ("secret_key", "hunter2", "32 bytes in base64"),
        ("secret_key", "Y" * 40, "32 bytes in base64"),
        ("secret_key", " , ", "no key in it"),
        ("query_picture_max_px", "1e99", "valid integer"),
    ],
)
def test_bad_values_are_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str
) -> None:
    monkeypatch.setenv(f"RIS_{name.upper()}", value)
    with pytest.raises(ValidationError) as refusal:
        Settings()
    (error,) = refusal.value.errors()
    assert error["loc"] == (name,)
    assert says in error["msg"]
    assert "hunter2" not in str(refusal.value)


def test_settings_are_read_once_and_cannot_be_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    settings.cache_clear()
    monkeypatch.setenv("RIS_COMMIT_BATCH", "9")
    try:
        first = settings()
        monkeypatch.setenv("RIS_COMMIT_BATCH", "10")
        assert settings() is first
        with pytest.raises(ValidationError, match="frozen"):
            first.commit_batch = 1  # type: ignore[misc]
    finally:
        settings.cache_clear()


def test_every_setting_is_described_and_bounded() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name
        if field.annotation in (int, float):
            assert field.metadata, f"{name} has no bounds"


def test_packages_that_overwrite_each_other_are_refused() -> None:
    require_one_faiss()  # here one is installed
    with pytest.raises(
        SetupFailed, match=r"faiss-cpu 1\.15\.1 and faiss-gpu 1\.15\.1 are installed"
    ):
        require_one_faiss(["faiss-cpu 1.15.1", "faiss-gpu 1.15.1"])
    require_one_faiss([])  # built by hand: the folder is there


def test_what_is_installed_is_told() -> None:
    works, found = describe_faiss()
    assert works and ("no GPU part" in found or "GPU" in found)
    assert "FFmpeg" in describe_hardware_decoding()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_nothing_is_started_for_a_device_that_does_not_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RIS_DEVICE", "cuda")
    monkeypatch.setenv("RIS_DATA_DIR", str(tmp_path / "ris"))
    settings.cache_clear()
    try:
        with pytest.raises(InputInvalid, match="Device 'cuda' is not usable here"):
            up()
    finally:
        settings.cache_clear()
    assert not (tmp_path / "ris").exists()
