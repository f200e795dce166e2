"""What names of recordings say, as recorders write them."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.core.file_names import NamePattern, in_zone
from worker.errors import InputInvalid

AT = datetime(2026, 5, 1, 8, 3, 7)  # noqa: DTZ001 - as names say it


@pytest.mark.parametrize(
    ("pattern", "path", "start", "camera"),
    [
        # Frigate, MediaMTX, Shinobi, Blue Iris, Dahua, Reolink, seconds since 1970
        ("%Y-%m-%d/%H/{camera}/%M.%S.mp4", "2026-05-01/08/yard/03.07.mp4", AT, "yard"),
        ("{camera}/%Y-%m-%d_%H-%M-%S-%f.mp4", "yard/2026-05-01_08-03-07-250000.mp4",
         AT.replace(microsecond=250_000), "yard"),
        ("%Y-%m-%dT%H-%M-%S.mp4", "group/yard/2026-05-01T08-03-07.mp4", AT, None),
        ("{camera}.%Y%m%d_%H%M%S*.mp4", "New/Cam1.20260501_080307_x.mp4", AT, "Cam1"),
        ("%Y-%m-%d/*/dav/%H/%H.%M.%S-*.dav",
         "2026-05-01/001/dav/08/08.03.07-08.13.07[R][0@0][0].dav", AT, None),
        ("%Y/%m/%d/{camera}_*_%Y%m%d%H%M%S.mp4", "2026/05/01/Porch_00_20260501080307.mp4", AT,
         "Porch"),
        ("{camera}-%s.mkv", "gate-1777622587.mkv", AT.replace(tzinfo=UTC), "gate"),
        ("%y%m%d-100%%.mp4", "260501-100%.mp4", AT.replace(hour=0, minute=0, second=0), None),
        ("%Y%m%d(1)+.mp4", "20260501(1)+.mp4", AT.replace(hour=0, minute=0, second=0), None),
    ],
)  # fmt: skip
def test_names_of_recorders(pattern: str, path: str, start: datetime, camera: str | None):
    named = NamePattern.parse(pattern).read(path)
    assert named is not None
    assert (named.start, named.camera) == (start, camera)


@pytest.mark.parametrize(
    "path",
    ["2026-05-01/08/yard/03.07.mp4.part", "2026-13-01/08/yard/03.07.mp4", "x/03.07.mp4", "",
     "2026-05-01/08/a/b/03.07.mp4", "a/2026-05-01/08/yard/03.07.mp4",
     "2026-05-01/08/yard/03.61.mp4"],
)  # fmt: skip
def test_other_names_say_nothing(path: str):
    assert NamePattern.parse("%Y-%m-%d/%H/{camera}/%M.%S.mp4").read(path) is None


def test_a_time_that_stands_there_twice_must_be_the_same():
    pattern = NamePattern.parse("%Y/%m/%d/%Y%m%d.mp4")
    assert pattern.read("2026/05/01/20260501.mp4") is not None
    assert pattern.read("2026/05/01/20260502.mp4") is None


@pytest.mark.parametrize(
    "pattern", ["", "%H-%M-%S.mp4", "{camera}.mp4", "%Y-%m.mp4", "%Y%m%d%Q.mp4", "%Y%m%d{cam}",
                "%Y%m%d%", "%Y%m%d" + "a" * 300]
)  # fmt: skip
def test_patterns_that_are_none(pattern: str):
    with pytest.raises(InputInvalid):
        NamePattern.parse(pattern)


@given(st.text(max_size=60), st.text(max_size=60))
def test_nothing_crashes(pattern: str, path: str):
    try:
        parsed = NamePattern.parse(pattern + "%Y%m%d")
    except InputInvalid:
        return
    parsed.read(path)


def test_zones():
    berlin = ZoneInfo("Europe/Berlin")
    assert in_zone(AT, berlin) == datetime(2026, 5, 1, 6, 3, 7, tzinfo=UTC)
    twice = datetime(2026, 10, 25, 2, 30)  # noqa: DTZ001
    assert in_zone(twice, berlin) == datetime(2026, 10, 25, 0, 30, tzinfo=UTC)
    assert in_zone(AT.replace(tzinfo=UTC), berlin) == AT.replace(tzinfo=UTC)
