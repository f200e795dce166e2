"""Queries through the API: asked, followed, read page by page, taken back."""

from __future__ import annotations

import io
import json

from PIL import Image

from api.given import ParamsGiven
from tests.api.conftest import BOX, Api
from tests.parts import run_jobs, sql
from worker.core.search_params import SearchParams


def test_a_query_on_a_frame_is_accepted_answered_and_read_page_by_page(api: Api):
    key = api.key("search", "view")
    told = api.answered(key, params={"tau": -1.0, "group": "frame"})
    assert told["frame_id"] == api.frame("street")
    assert told["hits"] > 3 and told["stats"]["frames_searched"] > 0
    hits, cursor = [], None
    while True:
        params = {"limit": 3} | ({} if cursor is None else {"cursor": cursor})
        page = api.client.get(
            f"/v1/queries/{told['query_id']}/hits", params=params, headers=key
        ).json()
        hits += page["items"]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert [hit["rank"] for hit in hits] == list(range(1, told["hits"] + 1))
    recorded = sql(
        api.context,
        "select frame_id, score from search_hits where query_id = %s order by rank",
        told["query_id"],
    )
    assert [(hit["frame_id"], hit["score"]) for hit in hits] == recorded
    assert all(hit["t_utc"].endswith("Z") for hit in hits)
    overlay = api.client.get(hits[0]["overlay"], headers=key)
    assert overlay.headers["content-type"] == "image/jpeg"
    with Image.open(io.BytesIO(overlay.content)) as drawn:
        assert drawn.size == (hits[0]["w_px"], hits[0]["h_px"])
    assert {"query_id", "rank", "frame_id"} <= set(api.acts("picture.view")[-1])


def test_a_query_on_an_uploaded_picture(api: Api):
    key = api.key("search", "view")
    picture = api.client.get(f"/v1/frames/{api.frame('car')}/picture", headers=key).content
    reply = api.client.post(
        "/v1/queries",
        files={"picture": ("a.jpg", picture, "image/jpeg")},
        data={"query": json.dumps({"roi": BOX, "params": {"tau": -1.0}})},
        headers=key,
    )
    assert reply.status_code == 202, reply.text
    run_jobs(api.context)
    told = api.client.get(reply.headers["Location"], headers=key).json()
    assert (told["state"], told["frame_id"]) == ("done", None)
    assert told["hits"] > 0


def test_every_parameter_of_a_search_can_be_given_and_has_its_default():
    defaults = ParamsGiven().model_dump(mode="json")
    assert defaults == json.loads(json.dumps(SearchParams().to_json()))


def test_a_zone_limits_where_matches_lie(api: Api):
    key = api.key("search", "view")
    zone = {"box": [0.0, 0.0, 0.5, 1.0]}
    told = api.answered(key, params={"tau": -1.0, "group": "frame", "zone": zone})
    assert told["params"]["zone"] == zone
    rows = sql(
        api.context,
        "select region_cell_index, grid_w from search_hits where query_id = %s",
        told["query_id"],
    )
    assert rows and all(cell % w < w / 2 for cells, w in rows for cell in cells)
