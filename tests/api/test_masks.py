"""Privacy masks over the API: set, shown, cleared, refused."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from tests.api.conftest import Api
from tests.parts import sql
from worker.masks import camera_masks

AREAS = [{"box": [0.0, 0.0, 0.25, 0.4]}, {"polygon": [[0.7, 0.1], [1.0, 0.1], [1.0, 0.5]]}]


@pytest.fixture
def camera(api: Api) -> int:
    given = {"name": uuid.uuid4().hex}
    made = api.client.post("/v1/cameras", json=given, headers=api.key("admin")).json()
    return int(made["camera_id"])


def put(api: Api, camera: int, areas: Any) -> Any:
    body = {"areas": areas}
    return api.client.put(f"/v1/cameras/{camera}/mask", json=body, headers=api.key("admin"))


def shown(api: Api, camera: int) -> dict[str, Any]:
    reply = api.client.get(f"/v1/cameras/{camera}/mask", headers=api.key("view"))
    told: dict[str, Any] = reply.json()
    return told


def test_what_was_put_is_what_frames_are_painted_with_and_is_audited(api: Api, camera: int):
    told = put(api, camera, AREAS).json()
    assert told == {"camera_id": camera, "mask_id": told["mask_id"], "areas": AREAS}
    assert shown(api, camera) == told
    with api.context.db.transaction() as session:
        mask = camera_masks(session, [camera])[camera]
    assert (mask.mask_id, len(mask.areas)) == (told["mask_id"], 2)
    act = {"camera_id": camera, "mask_id": told["mask_id"], "areas": AREAS}
    assert api.acts("camera.mask")[-1] == act


def test_the_same_areas_again_are_the_same_mask_and_others_another(api: Api, camera: int):
    first, again = put(api, camera, AREAS).json(), put(api, camera, AREAS).json()
    assert again["mask_id"] == first["mask_id"]
    other = put(api, camera, AREAS[:1]).json()
    assert other["mask_id"] != first["mask_id"]
    assert other["areas"] == AREAS[:1]


def test_an_empty_list_clears(api: Api, camera: int):
    put(api, camera, AREAS)
    assert put(api, camera, []).json() == {"camera_id": camera, "mask_id": None, "areas": []}
    assert shown(api, camera)["areas"] == []


@pytest.mark.parametrize(
    ("areas", "code"),
    [
        ([{"box": [0.5, 0.5, 0.5, 0.9]}], "roi_invalid"),
        ([{"polygon": [[0.1, 0.1], [0.9, 0.9], [0.9, 0.1], [0.1, 0.9]]}], "roi_invalid"),
        ([{"box": [0, 0, 1, 1.5]}], "input_invalid"),
        ([AREAS[0]] * 65, "input_invalid"),
        ([{"polygon": [[0.1, 0.1], [0.2, 0.1], [0.2, 0.2]] * 300}] * 3, "input_invalid"),
        (None, "input_invalid"),
    ],
    ids=["no extent", "crossing", "outside", "too many", "too many points", "none"],
)
def test_bad_areas_are_refused_and_the_mask_stays(api: Api, camera: int, areas: Any, code: str):
    before = put(api, camera, AREAS).json()
    refused = put(api, camera, areas)
    assert (refused.status_code, refused.json()["code"]) == (422, code)
    assert shown(api, camera) == before


def test_a_large_polygon_is_audited_by_count_and_hash(api: Api, camera: int):
    steps = [n / 100 for n in range(60)]
    around = [[x, 0.0] for x in steps] + [[0.6, 0.5]]
    assert put(api, camera, [{"polygon": around}]).status_code == 200
    audited = api.acts("camera.mask")[-1]["areas"][0]["polygon"]
    assert audited["points"] == 61
    kept = sql(api.context, "select areas from privacy_masks order by id desc limit 1")[0][0]
    assert kept == [{"polygon": around}]


def test_a_camera_that_is_not_known(api: Api):
    assert put(api, 10**9, AREAS).status_code == 404
