"""From a key to the right subject: by mouse, by keys, by touch, and on from a hit."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.page.conftest import BOW_TIE, CAR_TIME, Visit, Visits, offline

pytestmark = pytest.mark.slow


def box_of(visit: Visit) -> list[float]:
    return [float(value) for value in visit.place()["box"].split(",")]


def test_a_box_drawn_with_the_mouse_finds_the_subject(visit, desk):
    page = visit.open_car()
    visit.draw()
    assert box_of(visit) == pytest.approx(BOW_TIE, abs=0.01)
    page.get_by_role("button", name="Search").click()
    first = page.locator(".card").first
    expect(first).to_contain_text("car")
    expect(first).to_contain_text("Followed")
    query_id = visit.wait_place("query")
    hit = desk.ask(f"/v1/queries/{query_id}/hits?limit=1")["items"][0]
    x, y = (hit["box"][0] + hit["box"][2]) / 2, (hit["box"][1] + hit["box"][3]) / 2
    assert hit["camera_name"] == "car"
    assert BOW_TIE[0] < x < BOW_TIE[2], hit["box"]
    assert BOW_TIE[1] - 0.1 < y < BOW_TIE[3], hit["box"]
    picture = first.locator("img[src]")  # loaded as it comes into view
    assert picture.evaluate("img => img.decode().then(() => img.naturalWidth)") > 100
    assert first.locator(".cells").count() == 1


def test_the_whole_way_by_keyboard(visit, desk):
    page = visit.page
    page.goto(f"{desk.url}/#camera=car&t={CAR_TIME}")
    page.keyboard.type(desk.secret)  # the field has the focus
    page.keyboard.press("Enter")
    page.wait_for_selector(".stage img[src]")
    tab_to(page, "#stage")
    page.keyboard.press("Enter")
    for key, times in (("ArrowRight", 9), ("ArrowDown", 20), ("Shift+ArrowUp", 10)):
        for _ in range(times):
            page.keyboard.press(key)
    assert box_of(visit) == pytest.approx([0.44, 0.5, 0.74, 0.8], abs=1e-6)
    tab_to(page, "#search")
    page.keyboard.press("Enter")
    page.wait_for_selector(".card")
    tab_to(page, ".card .shown")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name=re.compile("Hit 1 of"))).to_be_visible()
    tab_to(page, "#hit .cell")
    expect(page.locator(".pair-words")).to_contain_text("matches your region's cell")
    page.keyboard.press("Escape")
    expect(page.locator("#hit")).to_be_hidden()
    assert page.evaluate("document.activeElement.classList.contains('shown')")
    page.keyboard.press("Shift+Tab")
    tab_to(page, "#stage", "Shift+Tab")
    page.keyboard.press("Delete")
    expect(page.locator("#roi-words")).to_contain_text("Draw a box")


def tab_to(page, selector: str, key: str = "Tab") -> None:
    for _ in range(60):
        if page.evaluate("wanted => document.activeElement.matches(wanted)", selector):
            return
        page.keyboard.press(key)
    raise AssertionError(f"{selector} is not reached with {key}")


def test_a_polygon_by_mouse_and_by_keys(visit, desk):
    page = visit.open_car()
    page.get_by_role("radio", name="Polygon").check()
    at = page.locator("#stage").bounding_box()
    for x, y in ((0.4, 0.6), (0.7, 0.6), (0.6, 0.9), (0.402, 0.602)):  # the last closes it
        page.mouse.click(at["x"] + x * at["width"], at["y"] + y * at["height"])
    expect(page.locator("#roi-words")).to_contain_text("Polygon of 3 corners")
    page.mouse.move(at["x"] + 0.6 * at["width"], at["y"] + 0.9 * at["height"])
    page.mouse.down()  # one corner is dragged
    page.mouse.move(at["x"] + 0.5 * at["width"], at["y"] + 0.95 * at["height"], steps=3)
    page.mouse.up()
    corners = [point.split(",") for point in visit.place()["polygon"].split(";")]
    assert [float(value) for value in corners[2]] == pytest.approx([0.5, 0.95], abs=0.02)
    page.keyboard.press("Delete")
    for keys in (["Space"], ["ArrowRight"] * 9 + ["Space"], ["ArrowDown"] * 9 + ["Space", "Enter"]):
        for key in keys:
            page.keyboard.press(key)
    expect(page.locator("#roi-words")).to_contain_text("Polygon of 3 corners")
    page.get_by_role("button", name="Search").click()
    query_id = visit.wait_place("query")
    assert len(desk.ask(f"/v1/queries/{query_id}")["roi"]["polygon"]) == 3


def test_a_box_drawn_and_moved_with_a_finger(visits: Visits, desk):
    visit = visits(desk.url, desk.secret, width=390, has_touch=True, is_mobile=True)
    page = visit.open_car()
    page.locator("#stage").scroll_into_view_if_needed()
    swipe(visit, (0.2, 0.3), (0.5, 0.7))
    assert box_of(visit) == pytest.approx([0.2, 0.3, 0.5, 0.7], abs=0.02)
    swipe(visit, (0.35, 0.5), (0.45, 0.6))  # inside: moves
    assert box_of(visit) == pytest.approx([0.3, 0.4, 0.6, 0.8], abs=0.02)
    swipe(visit, (0.6, 0.8), (0.7, 0.9))  # a corner: resizes
    assert box_of(visit) == pytest.approx([0.3, 0.4, 0.7, 0.9], abs=0.02)


def swipe(visit: Visit, begin: tuple[float, float], end: tuple[float, float]) -> None:
    at = visit.page.locator("#stage").bounding_box()
    assert at is not None
    session = visit.context.new_cdp_session(visit.page)

    def touch(kind: str, x: float, y: float) -> None:
        point = {"x": at["x"] + x * at["width"], "y": at["y"] + y * at["height"]}
        points = [] if kind == "touchEnd" else [point]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    touch("touchStart", *begin)
    touch("touchMove", (begin[0] + end[0]) / 2, (begin[1] + end[1]) / 2)
    touch("touchMove", *end)
    touch("touchEnd", *end)
    session.detach()


def test_marks_make_another_query(visit, desk):
    query_id = desk.done_query()
    page = visit.open(f"#query={query_id}")
    cards = page.locator(".card")
    cards.nth(0).get_by_role("button", name="More like this").click()
    cards.last.get_by_role("button", name="Not like this").click()
    page.get_by_role("button", name="Search again with these").click()
    page.wait_for_function("id => !location.hash.includes(id)", arg=query_id)
    expect(page.locator(".bar").first).to_contain_text("Searched with")
    told = desk.ask(f"/v1/queries/{visit.place()['query']}")
    hits = desk.ask(f"/v1/queries/{query_id}/hits")["items"]
    assert told["params"]["more"] == [{"frame_id": hits[0]["frame_id"], "box": hits[0]["box"]}]
    assert told["params"]["less"] == [{"frame_id": hits[-1]["frame_id"], "box": hits[-1]["box"]}]
    assert told["roi"] == {"box": list(BOW_TIE)}


def test_a_hit_large_and_the_next_query_from_it(visit, desk):
    query_id = desk.done_query()
    page = visit.open(f"#query={query_id}")
    page.locator(".card .shown").first.click()
    assert visit.place()["hit"] == "1"
    page.wait_for_function("() => document.querySelectorAll('#hit img[src]').length === 2")
    page.locator("#hit .cell").first.hover()
    expect(page.locator(".pair-words")).to_contain_text("matches your region's cell")
    assert page.locator("#hit .lit rect").count() >= 2  # here, and in the picture searched
    page.get_by_role("button", name="Hide marks").click()
    expect(page.locator("#hit .cell").first).to_be_hidden()
    page.get_by_role("button", name="Search from this hit").click()
    page.wait_for_function("id => !location.hash.includes(id)", arg=query_id)
    page.wait_for_selector(".card")
    hit = desk.ask(f"/v1/queries/{query_id}/hits")["items"][0]
    told = desk.ask(f"/v1/queries/{visit.place()['query']}")
    assert (told["frame_id"], told["roi"]) == (hit["frame_id"], {"box": hit["box"]})
    page.go_back()  # to the answer before
    page.wait_for_function("id => location.hash.includes(id)", arg=query_id)
    page.wait_for_selector(".card")
    page.reload()
    page.wait_for_selector(".card")
    assert visit.place()["query"] == query_id


def test_a_hit_opens_at_its_time_and_in_the_order_of_time(visit, desk):
    query_id = desk.done_query()
    page = visit.open(f"#query={query_id}&hit=2")
    expect(page.get_by_role("heading", name=re.compile("Hit 2 of"))).to_be_visible()
    hits = desk.ask(f"/v1/queries/{query_id}/hits")["items"]
    page.get_by_role("button", name="Open at its time").click()
    page.wait_for_function("t => location.hash.includes(t)", arg=hits[1]["t_utc"][:19])
    assert visit.place()["camera"] == str(hits[1]["camera_id"])
    page.get_by_role("radio", name="By time and camera").check()
    lines = page.locator(".way-line strong")
    expect(lines.first).to_have_text("street")  # an hour earlier
    assert lines.count() == len(hits)
    page.locator(".lane .bar").last.click()
    expect(page.locator("#hit")).to_be_visible()


def test_hits_are_exported_as_evidence(visit, visits: Visits, desk, tmp_path: Path):
    query_id = desk.done_query(group="frame")
    page = visit.open(f"#query={query_id}")
    bar = page.get_by_role("region", name="Evidence")
    expect(page.get_by_label("Choose hit 1 as evidence")).to_be_visible()
    expect(bar).to_be_hidden()
    tab_to(page, ".card .choose input")
    page.keyboard.press("Space")
    expect(bar).to_contain_text("1 hit chosen as evidence")
    page.locator(".card .shown").nth(1).click()
    page.locator("#hit").get_by_label("Choose hit 2 as evidence").check()
    visit.assert_accessible("a hit chosen in its window")
    page.keyboard.press("Escape")
    expect(page.locator(".card").nth(1).get_by_role("checkbox")).to_be_checked()
    expect(bar).to_contain_text("2 hits chosen as evidence")
    visit.assert_accessible("hits chosen")
    bar.scroll_into_view_if_needed()
    with offline(visit):
        page.get_by_role("button", name="Export evidence").click()
        expect(bar).to_contain_text("It could not be exported: The server does not answer.")
    with page.expect_download() as download:
        page.get_by_role("button", name="Export evidence").click()
    bundle = tmp_path / "bundle.zip"
    download.value.save_as(bundle)
    expect(bar).to_contain_text("Saved, signed by")
    told = desk.ris.json("evidence", "verify", str(bundle), "--rematch")
    assert (told["intact"], told["signer"], told["problems"]) == (True, "trusted", [])
    assert [hit["rank"] for hit in told["rematch"]] == [1, 2]
    assert all(hit["remade"] and hit["is_record"] for hit in told["rematch"])
    assert download.value.suggested_filename.startswith("evidence-")
    page.get_by_role("button", name="Choose none").click()
    expect(bar).to_be_hidden()
    # The search of a key that may not export, which sees nothing of it.
    limited = visits(desk.url, desk.key("--action", "view", "--action", "search"))
    page = limited.open_car()
    limited.draw()
    page.get_by_role("button", name="Search").click()
    page.wait_for_selector(".card")
    assert page.locator(".choose").count() == 0
    # By the command line the same hits.
    out = tmp_path / "cli.zip"
    made = desk.ris.json("evidence", "export", query_id, "--ranks", "1,2", "--out", str(out))
    assert made["signed_by"] == told["signed_by"] == desk.ris.json("evidence", "key")["fingerprint"]
    assert out.stat().st_mode & 0o777 == 0o600
