"""The Python client against a running RIS; the README's example as it stands there."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

import pytest

from ris_client import RisApiError, RisClient
from tests.processes.conftest import CAR_START
from tests.processes.harness import REPO, Ris
from tests.processes.test_api import url_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def client(ris: Ris, two_cameras: Any) -> RisClient:
    secret = ris.json("keys", "--create", "client", "--action", "view", "--action", "search")
    return RisClient(url_of(ris), secret["secret"])


def test_the_example_of_the_readme(client: RisClient, tmp_path, monkeypatch, capsys):
    readme = (REPO / "README.md").read_text()
    (example,) = re.findall(r"```python\n(.+?)```", readme, re.DOTALL)
    for there, here in (
        ('"http://127.0.0.1:8480"', repr(client.url)),
        ('"ris_..."', repr(client.key)),
        ('"yard"', '"street"'),
    ):
        assert there in example
        example = example.replace(there, here)
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert printed and printed[0].startswith("1 street 2026-01-01 12:00:")
    assert len(list(tmp_path.glob("hit-*.jpg"))) == len(printed)


def test_a_search_by_picture_with_filters(client: RisClient):
    car = client.camera("car")
    frame = client.nearest_frame(car.camera_id, datetime.fromisoformat(CAR_START))
    picture = client.picture(frame.frame_id)
    assert picture[:2] == b"\xff\xd8"
    answer = client.search_and_wait(
        picture=picture,
        polygon=[(0.2, 0.2), (0.8, 0.2), (0.5, 0.9)],
        camera_ids=[car.camera_id],
        t_from_utc=frame.t_utc,
        group="frame",
        limit=3,
    )
    assert answer.query.state == "done"
    assert 0 < len(answer.hits) <= 3
    assert {hit.camera_name for hit in answer.hits} == {"car"}
    assert answer.hits == tuple(client.hits(answer.query.query_id))


def test_refusals_are_typed(client: RisClient):
    with pytest.raises(RisApiError) as refused:
        client.search(frame_id=1, box=(0.1, 0.1, 0.1, 0.1))
    assert (refused.value.code, refused.value.status) == ("roi_invalid", 422)
    assert refused.value.request_id
    with pytest.raises(RisApiError) as refused:
        client.submit_segment("a.mp4", 1, datetime.fromisoformat(CAR_START))
    assert refused.value.code == "forbidden"
    with pytest.raises(RisApiError) as refused:
        RisClient(client.url, "ris_x").cameras()
    assert refused.value.code == "unauthenticated"
    with pytest.raises(LookupError):
        client.camera("nowhere")
