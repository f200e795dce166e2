"""A dozen live cameras for three minutes: nothing is missed, and nothing is left open."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from benchmarks import many_feeds

CAMERAS = 12
PATIENT = (("RIS_JOB_SLICE_S", "10"), ("RIS_JOB_LEASE_S", "60"), ("RIS_FEED_STALL_S", "30"))
"""A busy machine stands still for some seconds."""


@pytest.mark.slow
def test_many_cameras_are_read_without_a_gap(
    tmp_path: Path, quick_settings: dict[str, str]
) -> None:
    given = argparse.Namespace(
        cameras=CAMERAS,
        minutes=3.0,
        every=5.0,
        late=5.0,  # a busy machine
        set=[*quick_settings.items(), ("RIS_BACKBONE", "tiny"), *PATIENT],
    )
    found = many_feeds.measured(tmp_path, given)
    assert many_feeds.sound(found), json.dumps(found)
    assert found["frames"] >= CAMERAS * 180 / (5.0 + many_feeds.KEYFRAME_S)
