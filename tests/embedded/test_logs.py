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
        writer.write(b"first" + b"x" * (MAX_LOG_BYTES - 1) + b"\n")
        trim_logs(tmp_path)
        writer.write(b"after\n")
    aside = long.with_suffix(".log.1")
    kept = b"x" * (MAX_LOG_BYTES - 1) + b"\n"
    for _ in range(2):
        assert (long.read_bytes(), aside.read_bytes() == kept) == (b"after\n", True)
        trim_logs(tmp_path)
    assert (short.read_bytes(), sorted(path.name for path in short.parent.iterdir())) == (
        b"short",
        ["redis.log"],
    )


def test_no_link_is_followed(tmp_path: Path) -> None:
    """Its Postgres runs as another user, in a folder of its own."""
    theirs, logs = tmp_path / "theirs", tmp_path / "postgres"
    logs.mkdir()
    theirs.write_bytes(b"x" * (MAX_LOG_BYTES + 1))
    (logs / "postgres.log").symlink_to(theirs)
    trim_logs(tmp_path)
    assert theirs.stat().st_size == MAX_LOG_BYTES + 1
    (logs / "postgres.log").unlink()
    (logs / "postgres.log").write_bytes(b"y" * (MAX_LOG_BYTES + 1))
    (logs / "postgres.log.1").symlink_to(theirs)
    trim_logs(tmp_path)
    assert theirs.read_bytes()[:1] == b"x"
    assert (logs / "postgres.log.1").read_bytes() == b"y" * MAX_LOG_BYTES
