"""A finished search that goes on with new frames, and the list of its alerts."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.api.conftest import Api
from tests.api.test_standing import ALERT
from tests.page.conftest import Visits
from tests.page.test_states import STREET, site
from tests.parts import run_jobs, sql

pytestmark = pytest.mark.slow
__all__ = ["site"]


def test_a_search_is_watched_and_its_alerts_are_listed(
    site: tuple[Api, str],
    visits: Visits,
    tmp_path: Path,
):
    api, url = site
    secret = api.key("view", "search")["Authorization"].split()[1]
    visit = visits(url, secret)
    page = visit.open(STREET)
    page.wait_for_selector(".stage img[src]")
    expect(page.locator("#watching")).to_be_hidden()
    visit.draw((0.3, 0.3, 0.7, 0.8))
    page.get_by_role("button", name="Search", exact=True).click()
    visit.wait_place("query")
    run_jobs(api.context)
    page.get_by_role("button", name="Watch for this").click()
    expect(page.get_by_role("heading", name="Watched for")).to_be_visible()
    ((standing_id, params),) = sql(api.context, "select id, params from standing_queries")
    assert params["t_from_utc"] is None
    expect(page.locator("#watching")).to_contain_text("0 alerts")
    sql(api.context, ALERT, standing_id, api.frame("street", 1))
    sql(api.context, ALERT, standing_id, api.frame("gate"))
    page.get_by_role("button", name="Pause").click()
    expect(page.locator("#watching")).to_contain_text("paused, 2 alerts")
    expect(page.locator(".alerts li")).to_have_count(2)
    expect(page.locator(".alerts")).to_contain_text("one as alike in about 100 days")
    page.locator(".alerts img[src]").nth(1).wait_for()
    page.locator("#watching").scroll_into_view_if_needed()
    visit.assert_accessible("alerts")
    page.screenshot(path=str(tmp_path / "alerts.png"), full_page=True)
    page.locator(".alerts a", has_text="gate").click()
    visit.wait_place("camera")
    expect(page.locator(".alerts li")).to_have_count(2)
    page.get_by_role("button", name="Remove").click()
    expect(page.locator("#watching")).to_be_hidden()
    assert sql(api.context, "select count(*) from alerts") == [(0,)]
