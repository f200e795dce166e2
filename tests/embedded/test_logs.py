"""Logs stay within bounds while they are written to."""

from __future__ import annotations

from pathlib import Path

from worker.embedded.child_process import MAX_LOG_BYTES, trim_logs


def test_a_long_log_is_put_aside_and_its_writer_goes_on(tmp_path: Path) -> None:
    long, short = tmp_path / "logs" / "api.log", tmp_path / "redis" / "redis.log"
    for path in (long, short):
        path.parent.mkdir()
    short.write_bytes(b"short")
    with long.open("ab", buffering=0) as writer:
        writer.write(b"x" * (MAX_LOG_BYTES + 1))
        trim_logs(tmp_path)
        writer.write(b"after\n")
    aside = long.with_suffix(".log.1")
    assert (long.read_bytes(), aside.stat().st_size) == (b"after\n", MAX_LOG_BYTES + 1)
    trim_logs(tmp_path)
    assert (long.read_bytes(), aside.stat().st_size) == (b"after\n", MAX_LOG_BYTES + 1)
    assert (short.read_bytes(), sorted(path.name for path in short.parent.iterdir())) == (
        b"short",
        ["redis.log"],
    )
