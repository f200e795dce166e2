"""docs/scaling.md holds the sums of benchmarks/scaling.py, and these are of figures of the log."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import scaling

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "scaling.md").read_text()
LOG = (ROOT / "benchmarks" / "LOG.md").read_text()


def test_every_row_of_the_page_is_what_the_sums_say() -> None:
    rows = scaling.tables(1000, 90)
    assert [row for row in rows if row not in PAGE] == []
    on_page = [line for line in PAGE.splitlines() if line.startswith(("| everything", "| 1000 "))]
    assert on_page and set(on_page) <= set(rows)


@pytest.mark.parametrize(
    ("entry", "figure"),
    [
        ("bytes-a-frame-fixed-sealed", f"{scaling.INDEX_BYTES} | bytes | not sealed | 65920"),
        ("every-cell-1000000", f"{scaling.SCAN_CORE_S / 2 * 1e9:.0f} | ms"),
        ("default-1000000", f"{scaling.WHOLE_S * 1e9:.0f} | ms"),
        ("default-camera-hour-1000000", f"{scaling.HOUR_S * 1e3:.0f} | ms"),
        ("append-commit-64-frames-at-1000000", f"{scaling.APPEND_S * 64 * 1e3:.2f} | ms"),
    ],
)
def test_inputs_are_figures_of_the_log(entry: str, figure: str) -> None:
    lines = [line for line in LOG.splitlines() if entry in line]
    assert any(figure in line for line in lines), figure


def test_inputs_that_the_log_tells_in_words_are_there() -> None:
    words = " ".join(LOG.split())
    assert "3.1 GB of codes and 0.3 GB of whole-frame descriptors" in words
    assert "one forward pass (35 ms)" in words
    assert scaling.SCANNED_BYTES == (3.1e9 + 0.3e9) / 1e6
    assert scaling.EMBED_S == 0.035
    assert scaling.OPEN_BYTES == 65_920


def test_sums_follow_their_formulas() -> None:
    archive = scaling.Archive(cameras=2, days=3, every_s=2)
    assert archive.frames == 2 * 3 * 43_200
    cells = [cell.strip() for cell in scaling.scan_row("x", 1e6).strip("| ").split("|")]
    assert float(cells[2]) == round(scaling.HOUR_S + 3.155, 1)
    assert float(cells[3]) == 1.8 and float(cells[4]) == 3.4
