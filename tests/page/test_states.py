"""What the page says where something is missing, late, wrong or very much; and how it looks."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi.testclient import TestClient
from PIL import ExifTags, Image
from playwright.sync_api import expect

import worker.search as search_module
from api.app import make_app
from api.desk import ApiDesk, open_desk
from tests.api.conftest import CAR_START, STREET_START, Api
from tests.conftest import Services
from tests.issuer import issuing, new_role, oidc_settings
from tests.page.conftest import Visit, Visits, offline
from tests.parts import fresh_context, ingested, run_jobs, sql
from worker.closer_look import look_closer
from worker.core.geometry import roi_cells
from worker.core.roi_json import roi_from_json
from worker.core.types import GridSize

pytestmark = pytest.mark.slow

STREET = "#camera=street&t=2026-01-01T12:00:02Z"


@contextmanager
def listening(desk: ApiDesk) -> Iterator[str]:
    """The API on a free port, in a thread."""
    server = uvicorn.Server(uvicorn.Config(make_app(desk), port=0, log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = server.force_exit = True
    thread.join()


@contextmanager
def served(
    services: Services, template: str, folder: Path, footage: dict[str, Path]
) -> Iterator[tuple[Api, str]]:
    # Streams of events end soon, so that the page must ask for them again.
    changes = {"backbone": "tiny-a", "codec": "fp32", "api_events_s": 1.0}
    with fresh_context(services.database_url, template, folder, **changes) as context:
        desk = open_desk(context.settings, lambda _job_id, _kind: None)
        with listening(desk) as url:
            yield Api(context, desk, TestClient(make_app(desk)), footage["car"].parent), url
        desk.close()


@pytest.fixture(scope="module")
def site(
    chromium: str,
    services: Services,
    template_database: str,
    tmp_path_factory: pytest.TempPathFactory,
    footage: dict[str, Path],
) -> Iterator[tuple[Api, str]]:
    """``street``, ``car`` an hour later, and ``gate``: twice a minute's walk apart."""
    folder = tmp_path_factory.mktemp("site")
    with served(services, template_database, folder, footage) as (api, url):
        ingested(api.context, footage["bikes"], "street", 2.0, start_utc=STREET_START)
        ingested(api.context, footage["car"], "car", 1.0, start_utc=CAR_START)
        for minutes in (0, 5):
            start = CAR_START + timedelta(minutes=minutes)
            ingested(api.context, footage["car"], "gate", 1.0, start_utc=start)
        yield api, url


@pytest.fixture
def api(site: tuple[Api, str]) -> Api:
    return site[0]


def secret_of(api: Api, *actions: str) -> str:
    return api.key(*actions)["Authorization"].removeprefix("Bearer ")


@pytest.fixture
def visit(visits: Visits, site: tuple[Api, str]) -> Visit:
    made: Visit = visits(site[1], secret_of(site[0]))
    return made


def headers(visit: Visit) -> dict[str, str]:
    return {"Authorization": f"Bearer {visit.secret}"}


# --- keys


def test_keys_that_are_not_accepted(visit, api):
    page = visit.page
    visit.expected.append("401")
    page.goto(visit.url)
    visit.sign_in("ris_wrong")
    expect(visit.text("This key is not accepted")).to_be_visible()
    visit.sign_in(secret_of(api, "view"))
    expect(visit.text("It lacks: search.")).to_be_visible()
    own = secret_of(api, "view", "search")
    visit.sign_in(own)
    page.wait_for_selector(".stage img[src]")
    page.reload()  # the tab keeps the key
    page.wait_for_selector(".stage img[src]")
    sql(
        api.context,
        "update api_keys set revoked_at = now() where id = (select max(id) from api_keys)",
    )
    page.get_by_role("button", name="‹ Before").click()
    expect(visit.text("This key is not accepted any more")).to_be_visible()
    assert page.evaluate("sessionStorage.getItem('ris-key')") is None
    assert page.locator("img").count() == 0


def test_an_access_token_may_be_pasted_in_place_of_a_key(visits, api):
    role = new_role(api.context, "view", "search")
    with issuing() as issuer:
        desk = open_desk(oidc_settings(issuer, api.context.settings), lambda _job_id, _kind: None)
        with listening(desk) as url:
            visit = visits(url, issuer.token(groups=[role]))
            visit.open(STREET).wait_for_selector(".stage img[src]")


def test_signing_out_leaves_nothing(visit):
    page = visit.open(STREET)
    page.wait_for_selector(".stage img[src]")
    assert page.evaluate("[document.cookie, localStorage.length]") == ["", 0]
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("API key")).to_be_focused()
    assert page.evaluate("sessionStorage.getItem('ris-key')") is None
    assert page.locator("img").count() == 0


# --- footage


def test_without_a_camera_it_says_how_to_get_one(
    visits, services, template_database, tmp_path, footage
):
    with served(services, template_database, tmp_path, footage) as (api, url):
        visit = visits(url, secret_of(api))
        page = visit.open()
        expect(visit.text("There is no camera yet")).to_be_visible()
        expect(page.locator("#camera code").first).to_have_text(re.compile("ris ingest"))
        visit.assert_accessible("no camera")
        api.client.post("/v1/cameras", json={"name": "new"}, headers=headers(visit))
        page.get_by_role("button", name="Look again").click()
        expect(visit.text("Nothing of this camera is indexed yet")).to_be_visible()
        visit.assert_accessible("an empty camera")


def test_steps_times_and_gaps(visit):
    page = visit.open("#camera=gate&t=2026-01-01T13:02:00Z")
    expect(visit.text("No frame at 1 Jan 2026, 14:02:00")).to_be_visible()
    expect(page.locator(".time-sum")).to_contain_text("1 gap (hatched), the longest 5 min")
    assert page.locator(".time-gap").count() == 1
    page.get_by_role("button", name="Next ›").click()
    page.wait_for_function("() => location.hash.includes('T13:05:00')")
    expect(visit.text("No frame at")).to_have_count(0)
    page.get_by_role("button", name="‹ Before").click()
    page.wait_for_function("() => location.hash.includes('T13:00:03')")
    slider = page.get_by_role("slider", name="Time of the picture")
    at = slider.bounding_box()
    page.mouse.click(at["x"] + at["width"] * 0.9, at["y"] + 10)
    page.wait_for_function("() => location.hash.includes('T13:05:0')")
    slider.press("Home")
    page.wait_for_function("() => location.hash.includes('T13:00:00Z')")
    expect(slider).to_have_attribute("aria-valuetext", "1 Jan 2026, 14:00:00")
    for _ in range(2):
        page.get_by_role("button", name="Shorter span").click()
    expect(page.locator(".time-sum")).to_contain_text("no gaps")
    page.get_by_text("Go to a time, keys").click()
    page.get_by_label("Go to", exact=True).fill("2026-01-01T14:05:01")
    page.get_by_role("button", name="Go", exact=True).click()
    page.wait_for_function("() => location.hash.includes('T13:05:01')")
    page.get_by_label("Camera", exact=True).select_option("street")
    page.wait_for_function("() => location.hash.includes('T12:00:0')")


def test_links_that_lead_nowhere(visit):
    visit.expected.append("404")
    page = visit.open("#camera=999")
    expect(visit.text("Camera 999 is not known")).to_be_visible()
    page.goto(f"{visit.url}/#query={uuid.uuid4()}")
    expect(visit.text("This search is not known")).to_be_visible()
    page.goto(f"{visit.url}/{STREET}&box=0.1,0.2,0.4,0.7")
    expect(page.locator("#roi-words")).to_contain_text("Box: from 10 % to 40 % across")


# --- searches


def asked(visit: Visit, api: Api) -> str:
    page = visit.open(STREET + "&box=0.2,0.2,0.8,0.8")
    page.wait_for_selector(".stage:not([aria-busy]) img[src]")
    page.get_by_role("button", name="Search", exact=True).click()
    return visit.wait_place("query")


def test_a_search_is_followed_from_waiting_to_its_hits(visit, api):
    page = visit.open(STREET)
    page.wait_for_selector(".stage img[src]")
    page.get_by_role("button", name="Search", exact=True).click()
    expect(visit.text("Draw a region on the picture first.")).to_be_visible()
    page.goto(f"{visit.url}/{STREET}&box=0.2,0.2,0.8,0.8")
    page.get_by_text("Cameras: all").click()
    page.get_by_role("checkbox", name="street").check()
    page.get_by_label("Time", exact=True).select_option("hour")
    page.get_by_text("Strategy and length").click()
    page.get_by_label("Strategy", exact=True).select_option("max-sim")
    page.get_by_label("List", exact=True).select_option("frame")
    page.get_by_role("button", name="Search", exact=True).click()
    expect(visit.text("Waiting for a free worker")).to_be_visible()
    run_jobs(api.context)
    page.wait_for_selector(".card")  # told by the stream of events
    told = api.client.get(f"/v1/queries/{visit.place()['query']}", headers=headers(visit)).json()
    assert told["params"]["camera_ids"] == [api.camera("street")]
    assert (told["params"]["strategy"], told["params"]["group"]) == ("max-sim", "frame")
    assert told["params"]["t_to_utc"].startswith("2026-01-01T13:00:0")
    assert page.locator(".card").count() == told["hits"] > 1


def test_first_hits_are_shown_while_the_search_goes_on(visit, api, monkeypatch):
    page = visit.open(STREET + "&box=0.2,0.2,0.8,0.8")
    page.wait_for_selector(".stage:not([aria-busy]) img[src]")
    goes_on = threading.Event()

    def wait_and_look(*given: Any, **named: Any) -> Any:
        assert goes_on.wait(60)
        return look_closer(*given, **named)

    monkeypatch.setattr(search_module, "look_closer", wait_and_look)
    page.get_by_role("button", name="Search", exact=True).click()
    visit.wait_place("query")
    worker = threading.Thread(target=run_jobs, args=[api.context])
    worker.start()
    try:
        expect(visit.text("Still looking closer")).to_be_visible()
        expect(page.locator(".card").first).to_be_visible()
        visit.assert_accessible("first hits")
        expect(page.get_by_role("region", name="Marked hits")).to_be_hidden()
        page.get_by_role("button", name="More like this").first.click()
        page.locator(".card .shown").nth(1).focus()
        scrolled = page.evaluate("window.scrollY")
    finally:
        goes_on.set()
        worker.join()
    expect(page.get_by_text("How to read a hit")).to_be_visible()
    expect(visit.text("Still looking closer")).to_be_hidden()
    focused = "document.activeElement.closest('.card')?.dataset.rank"
    assert page.evaluate(focused) == "2"  # whoever was there still is
    assert page.evaluate("window.scrollY") == scrolled
    marked = page.get_by_role("button", name="More like this").first
    expect(marked).to_have_attribute("aria-pressed", "true")  # and is still
    expect(page.get_by_role("region", name="Marked hits")).to_be_visible()
    marked.click()
    expect(marked).to_have_attribute("aria-pressed", "false")


def test_a_search_taken_back(visit, api):
    asked(visit, api)
    page = visit.page
    expect(visit.text("Waiting for a free worker")).to_be_visible()
    visit.assert_accessible("waiting")
    page.get_by_role("button", name="Cancel the search").click()
    expect(visit.text("The search was cancelled")).to_be_visible()


def test_a_search_that_failed_says_why(visit, api):
    query_id = asked(visit, api)
    sql(
        api.context,
        "update jobs set state = 'failed', error_code = 'index_damaged',"
        " error_detail = '/srv/7: bad', finished_at = now()"
        " where id = (select job_id from search_queries where id = %s)",
        query_id,
    )
    expect(visit.text("The search failed")).to_be_visible()
    expect(visit.text("7: bad")).to_be_visible()
    expect(visit.text("/srv")).to_have_count(0)
    expect(visit.text("Code: index_damaged")).to_be_visible()
    visit.assert_accessible("failed")


def test_no_hits_and_what_to_try(visit, api):
    told = api.answered(headers(visit), params={"t_from_utc": "2030-01-01T00:00:00Z"})
    visit.open(f"#query={told['query_id']}")
    expect(visit.text("There was nothing to search")).to_be_visible()
    visit.assert_accessible("nothing to search")
    sql(
        api.context,
        """update search_queries set stats = stats || '{"frames_searched": 95}' where id = %s""",
        told["query_id"],
    )
    visit.page.reload()
    expect(visit.text("Nothing that looks alike was found")).to_be_visible()
    expect(visit.text("95 frames were searched")).to_be_visible()
    expect(visit.text("Search all cameras and times.")).to_be_visible()
    visit.assert_accessible("no hits")


def test_an_answer_that_lacks_frames_says_so(visit, api):
    told = api.answered(headers(visit))
    statement = """update search_queries set stats = stats || '{"frames_lost": 3}' where id = %s"""
    sql(api.context, statement, told["query_id"])
    sql(
        api.context,
        "update search_hits set false_matches = 7, on_trail = false where query_id = %s",
        told["query_id"],
    )
    page = visit.open(f"#query={told['query_id']}")
    expect(visit.text("This answer is degraded")).to_be_visible()
    expect(visit.text("3 stored frames could not be read")).to_be_visible()
    expect(visit.text("No convincing match")).to_be_visible()
    expect(page.locator(".card").first).to_contain_text("No more than chance")


def test_a_server_that_does_not_answer(visit, api):
    page = visit.open(STREET + "&box=0.2,0.2,0.8,0.8")
    page.wait_for_selector(".stage:not([aria-busy]) img[src]")
    before = sql(api.context, "select count(*) from search_queries")[0][0]
    with offline(visit):
        page.get_by_role("button", name="Next ›").click()
        expect(page.locator("#camera .notice")).to_contain_text("The server does not answer.")
        page.get_by_role("button", name="Search", exact=True).click()
        expect(page.locator("#found .notice")).to_contain_text("Nothing was lost")
        visit.assert_accessible("unreachable")
    page.locator("#camera .notice").get_by_role("button", name="Try again").click()
    page.wait_for_function("() => location.hash.includes('T12:00:04')")
    page.locator("#found .notice").get_by_role("button", name="Try again").click()
    expect(visit.text("Waiting for a free worker")).to_be_visible()
    with offline(visit):
        expect(visit.text("Asking again every two seconds")).to_be_visible()
        run_jobs(api.context)
    page.wait_for_selector(".card")
    assert sql(api.context, "select count(*) from search_queries")[0][0] == before + 1


@pytest.fixture
def many_hits(visit, api) -> Iterator[str]:
    """A query with 400 hits, each on a frame made up for it."""
    query_id = api.answered(headers(visit))["query_id"]
    sql(api.context, "delete from search_hits where query_id = %s and rank > 1", query_id)
    sql(
        api.context,
        """with made as (
             insert into frames (segment_id, camera_id, t_utc, pts, h_px, w_px, picture_sha256)
             select segment_id, camera_id, t_utc + n * interval '1 s', pts + n * 1000000, h_px,
               w_px, picture_sha256 from frames, generate_series(1, 399) n where id = %s
             returning id)
           insert into search_hits
           select (jsonb_populate_record(h, jsonb_build_object(
             'frame_id', made.id, 'rank', 1 + row_number() over (order by made.id)))).*
           from made, search_hits h where h.query_id = %s""",
        api.frame("street", 1),
        query_id,
    )
    yield query_id
    sql(api.context, "delete from search_hits where query_id = %s", query_id)
    sql(api.context, "delete from frames where pts >= 1000000")


def test_many_hits_arrive_as_the_list_is_scrolled(visit, many_hits):
    page = visit.open(f"#query={many_hits}")
    page.wait_for_selector(".card")
    assert page.locator(".card").count() == 50
    expect(page.locator(".sum")).to_contain_text("400 hits")
    page.mouse.move(900, 500)
    for shown in range(50, 400, 50):
        page.mouse.wheel(0, 100_000)
        expect(page.locator(f".card >> nth={shown}")).to_be_attached()
    expect(page.locator(".card")).to_have_count(400)
    expect(page.locator(".foot")).to_have_text("400 of 400 hits")
    page.locator(".card:last-child").scroll_into_view_if_needed()
    page.wait_for_selector(".card:last-child img[src]")
    held = page.locator(".card img[src]").count()
    assert held < 120, "pictures far outside the view are let go"
    page.keyboard.press("Home")
    page.evaluate("scrollTo(0, 0)")
    page.wait_for_selector(".card:first-child img[src]")


def test_a_zone_is_drawn_searched_shown_and_taken_away(visit, api):
    page = visit.open(STREET + "&box=0.2,0.2,0.8,0.8")
    page.wait_for_selector(".stage:not([aria-busy]) img[src]")
    page.get_by_text("Zone: the whole picture").click()
    page.wait_for_selector(".zone-stage img[src]")
    page.get_by_role("button", name="Search only street").click()
    expect(page.get_by_text("Cameras: 1 of 3")).to_be_visible()
    expect(page.get_by_role("button", name="Search only street")).to_have_count(0)
    page.locator(".zone-stage").focus()
    page.keyboard.press("Enter")
    for _ in range(35):
        page.keyboard.press("ArrowLeft")
    expect(page.locator("#zone-words")).to_contain_text("Box: from 0 % to 30 % across")
    expect(visit.text("Zone: a part of the picture")).to_be_visible()
    visit.assert_accessible("a zone")
    page.get_by_text("Strategy and length").click()
    page.get_by_label("Strategy", exact=True).select_option("max-sim")
    page.get_by_role("button", name="Search", exact=True).click()
    query_id = visit.wait_place("query")
    run_jobs(api.context)
    page.wait_for_selector(".card")
    expect(page.locator(".sum")).to_contain_text("within the zone")
    where = f"/v1/queries/{query_id}"
    told = api.client.get(where, headers=headers(visit)).json()
    assert told["params"]["zone"]["box"] == pytest.approx([0, 0.3, 0.3, 0.7])
    for hit in api.client.get(where + "/hits", headers=headers(visit)).json()["items"]:
        assert all(cell % hit["grid"]["w"] < hit["grid"]["w"] * 0.3 for cell in hit["region_cells"])
    page.reload()
    expect(visit.text("Zone: a part of the picture")).to_be_visible()  # as it was searched
    page.locator(".card .shown").first.click()
    expect(page.locator("#hit .zone-edge")).to_have_count(1)
    page.keyboard.press("Escape")
    page.get_by_text("Zone: a part of the picture").click()
    page.get_by_role("button", name="No zone").click()
    expect(visit.text("Zone: the whole picture")).to_be_visible()
    page.get_by_role("button", name="Search", exact=True).click()
    page.wait_for_function("id => !location.hash.includes(id)", arg=query_id)
    where = f"/v1/queries/{visit.place()['query']}"
    assert api.client.get(where, headers=headers(visit)).json()["params"]["zone"] is None


def test_a_proposed_subject_is_clicked_or_chosen_by_keys(visit, api):
    frame_id = api.frame("street", 2)
    ((t_utc,),) = sql(api.context, "select t_utc from frames where id = %s", frame_id)
    where = f"/v1/frames/{frame_id}/proposals"
    boxes = api.client.get(where, headers=headers(visit)).json()["boxes"]
    assert boxes, "people move in the street"
    page = visit.open(f"#camera=street&t={t_utc:%Y-%m-%dT%H:%M:%S.%fZ}")
    page.wait_for_selector(".stage:not([aria-busy]) img[src]")
    assert page.locator(".subject").count() == 0  # only where they are asked for
    page.get_by_role("button", name="Subjects").click()
    expect(page.locator(".subject")).to_have_count(len(boxes))
    expect(visit.text(f"{len(boxes)} proposed subject")).to_be_visible()
    visit.assert_accessible("proposed subjects")
    x0, y0, x1, y1 = boxes[-1]  # the smallest
    at = page.locator("#stage").bounding_box()
    centre = (at["x"] + (x0 + x1) / 2 * at["width"], at["y"] + (y0 + y1) / 2 * at["height"])
    page.mouse.click(*centre)
    page.wait_for_function("() => location.hash.includes('box=')")
    chosen = [float(value) for value in visit.place()["box"].split(",")]
    assert chosen == pytest.approx(boxes[-1], abs=1e-3)
    page.keyboard.press("Delete")
    first = page.locator(".subject").first
    first.focus()
    page.keyboard.press("Enter")
    leftmost = min(boxes, key=lambda box: box[0])
    chosen = [float(value) for value in visit.place()["box"].split(",")]
    assert chosen == pytest.approx(leftmost, abs=1e-3)
    assert page.evaluate("document.activeElement.id") == "stage"  # arrows adjust it
    page.get_by_role("button", name="Next ›").click()
    page.wait_for_function("t => !location.hash.includes(t)", arg=visit.place()["t"])
    expect(visit.text("Looking for what moves")).to_have_count(0)  # of the next frame by now
    page.get_by_role("button", name="Subjects").click()
    expect(page.locator(".subject")).to_have_count(0)


# --- own pictures


def turned_picture(api: Api, name: str = "coat.jpg") -> dict[str, Any]:
    """A street frame lying on its side, whose EXIF says how to turn it upright; as a file."""
    sha256 = sql(
        api.context, "select picture_sha256 from frames where id = %s", api.frame("street")
    )
    frame = Image.open(io.BytesIO(api.desk.pictures.read(sha256[0][0])))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # to be turned by 90 degrees
    made = io.BytesIO()
    frame.save(made, "JPEG", exif=exif)
    return {"name": name, "mimeType": "image/jpeg", "buffer": made.getvalue()}


def test_an_own_picture_is_searched(visit, api):
    page = visit.open(STREET)
    page.wait_for_selector(".stage:not([aria-busy]) img[src]")
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Own picture").click()
    picture = turned_picture(api)
    chooser.value.set_files(picture)
    expect(visit.text("Own picture: coat.jpg")).to_be_visible()
    expect(page.get_by_role("slider", name="Time of the picture")).to_be_hidden()
    expect(page.get_by_role("button", name="Subjects")).to_be_hidden()
    expect(page.locator("#span option[value=hour]")).to_be_disabled()
    assert visit.place() == {}  # no camera's
    page.wait_for_selector(".stage:not([aria-busy]) img[src]")
    assert page.evaluate("(({naturalWidth: w, naturalHeight: h}) => w / h)(document.images[0])") < 1
    visit.draw((0.25, 0.25, 0.75, 0.75))
    visit.assert_accessible("an own picture")
    with offline(visit):
        page.get_by_role("button", name="Search", exact=True).click()
        expect(page.locator("#found .notice")).to_contain_text("Nothing was lost")
    page.locator("#found .notice").get_by_role("button", name="Try again").click()
    query_id = visit.wait_place("query")
    run_jobs(api.context)
    page.wait_for_selector(".card")
    statement = "select frame_id, picture_sha256, roi from search_queries where id = %s"
    ((frame_id, sha256, roi),) = sql(api.context, statement, query_id)
    assert (frame_id, sha256) == (None, hashlib.sha256(picture["buffer"]).hexdigest())
    assert roi["box"] == pytest.approx([0.25, 0.25, 0.75, 0.75], abs=0.01)
    page.get_by_role("button", name="Watch for this").click()
    expect(page.get_by_role("heading", name="Watched for")).to_be_visible()
    statement = "select picture_sha256 from standing_queries order by id desc limit 1"
    assert sql(api.context, statement) == [(sha256,)]  # the same bytes
    page.get_by_role("button", name="Remove").click()
    expect(page.locator("#watching")).to_be_hidden()

    page.reload()
    expect(visit.text("Own picture: of this search")).to_be_visible()
    expect(page.locator("#roi-words")).to_contain_text("Box: from 25 % to 75 % across")
    page.get_by_role("button", name="More like this").first.click()
    page.get_by_role("button", name="Search again with these").click()
    page.wait_for_function("id => !location.hash.includes(id)", arg=query_id)
    run_jobs(api.context)
    page.wait_for_selector(".card")
    told = api.client.get(f"/v1/queries/{visit.place()['query']}", headers=headers(visit)).json()
    assert (told["frame_id"], len(told["params"]["more"])) == (None, 1)
    assert told["roi"] == roi
    page.get_by_role("button", name="Back to the camera").click()
    visit.wait_place("camera")
    expect(page.get_by_role("slider", name="Time of the picture")).to_be_visible()
    expect(page.locator("#roi-words")).to_contain_text("Draw a box")
    page.go_back()  # to the first of the two searches
    expect(visit.text("Own picture: of this search")).to_be_visible()


GIVE = """([event, name, type, base64]) => {
  const bytes = Uint8Array.from(atob(base64), (one) => one.charCodeAt(0));
  const data = new DataTransfer();
  data.items.add(new File([bytes], name, { type }));
  const kinds = event === "paste" ? ["paste"] : ["dragover", "drop"];
  for (const kind of kinds) {
    const held = { dataTransfer: data, clipboardData: data, bubbles: true, cancelable: true };
    const made = kind === "paste" ? new ClipboardEvent(kind, held) : new DragEvent(kind, held);
    document.querySelector("#answer").dispatchEvent(made);
  }
}"""


def test_a_picture_is_dropped_or_pasted(visit, api):
    page = visit.open(STREET)
    page.wait_for_selector(".stage:not([aria-busy]) img[src]")

    def give(event: str, name: str, kind: str, content: bytes) -> None:
        page.evaluate(GIVE, [event, name, kind, base64.b64encode(content).decode()])

    give("drop", "notes.txt", "text/plain", b"no picture")
    expect(visit.text("This file cannot be shown as a picture")).to_be_visible()
    expect(page.get_by_role("slider", name="Time of the picture")).to_be_visible()
    give("drop", "a.jpg", "image/jpeg", turned_picture(api)["buffer"])
    expect(visit.text("Own picture: a.jpg")).to_be_visible()
    expect(visit.text("This file cannot be shown")).to_have_count(0)
    give("paste", "b.jpg", "image/jpeg", turned_picture(api)["buffer"])
    expect(visit.text("Own picture: b.jpg")).to_be_visible()
    page.get_by_role("button", name="Search", exact=True).click()
    expect(visit.text("Draw a region on the picture first.")).to_be_visible()
    page.goto(f"{visit.url}/{STREET}")  # a link leads to its camera
    expect(page.get_by_role("slider", name="Time of the picture")).to_be_visible()


# --- looks


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_every_state_is_accessible_and_fits(visits, site, width, scheme):
    api, url = site
    visit: Visit = visits(url, secret_of(api), width=width, scheme=scheme)
    page = visit.page
    told = api.answered(headers(visit))
    page.goto(f"{url}/#query={told['query_id']}")
    page.wait_for_selector("#key")
    visit.assert_accessible("signed out")
    page.goto(f"{url}/{STREET}")
    visit.sign_in(visit.secret)
    page.wait_for_selector(".stage img[src]")
    for summary in page.locator("#desk summary").all():
        summary.click()
    visit.assert_accessible("nothing searched")
    page.goto(f"{url}/#query={told['query_id']}")
    page.wait_for_selector(".card img[src]")
    page.locator(".mark.more").first.click()
    visit.assert_accessible("hits")
    page.get_by_role("radio", name="By time and camera").check()
    page.wait_for_selector(".way")
    visit.assert_accessible("appearances")
    page.locator(".way-line").first.click()
    page.wait_for_function("() => document.querySelectorAll('#hit img[src]').length === 2")
    visit.assert_accessible("a hit")
    small = page.evaluate(
        """() => [...document.querySelectorAll('button, select, summary, .choice label')]
           .map((one) => [one.textContent, one.getBoundingClientRect(), one])
           .filter(([, box, one]) => box.height > 2 && box.height < 39.5 && !one.matches('.bar'))
           .map(([words, box]) => words + ' ' + box.height)"""
    )
    assert small == []


def test_the_cells_shown_are_those_searched(visit):
    """Which cells a region selects is computed here and by the search; both say the same."""
    regions: list[dict[str, Any]] = [
        {"box": [0.3, 0.3, 0.5, 0.9]},
        {"box": [0.0, 0.0, 1.0, 1.0]},
        {"box": [0.51, 0.52, 0.53, 0.54]},
        {"box": [0.03125, 0.1, 0.28125, 0.5]},
        {"polygon": [[0.1, 0.1], [0.9, 0.2], [0.5, 0.8]]},
        {"polygon": [[0.2, 0.2], [0.8, 0.2], [0.8, 0.8], [0.5, 0.4], [0.2, 0.8]]},
        {"polygon": [[0.41, 0.41], [0.43, 0.41], [0.42, 0.43]]},
    ]
    visit.page.goto(visit.url)
    for grid in (GridSize(16, 16), GridSize(7, 11)):
        shown = visit.page.evaluate(
            "async ([regions, grid]) => { const { cellsOf } = await import('/page/shape.mjs');"
            " return regions.map((roi) => cellsOf(roi, grid)); }",
            [regions, {"h": grid.h, "w": grid.w}],
        )
        for region, cells in zip(regions, shown, strict=True):
            taken = roi_cells(roi_from_json(region), grid)
            assert cells == (taken[:, 0] * grid.w + taken[:, 1]).tolist(), json.dumps(region)
