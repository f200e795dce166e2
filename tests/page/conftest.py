"""The page in a real Chromium, on a real RIS with two cameras."""

from __future__ import annotations

import json
import os
import shutil
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Locator,
    Page,
    expect,
    sync_playwright,
)

from tests.processes.harness import Ris
from worker.embedded.state import api_path

CHROMIUM_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PATIENCE_MS = 60_000
STREET_START = "2026-05-01T12:00:00+00:00"
CAR_START = "2026-05-01T13:00:00+00:00"
CAR_TIME = "2026-05-01T13:00:01Z"
BOW_TIE = (0.44, 0.62, 0.68, 0.92)
"""Where the bow tie of the man in the car is at CAR_TIME."""


@dataclass
class Desk:
    """A RIS and keys to it."""

    ris: Ris
    url: str
    secret: str

    def key(self, *arguments: str) -> str:
        """A new key, by what `ris keys --create` takes."""
        return str(self.ris.json("keys", "--create", "test", *arguments)["secret"])

    def ask(self, path: str, body: Any = None) -> Any:
        """What the API answers."""
        request = urllib.request.Request(
            self.url + path,
            data=None if body is None else json.dumps(body).encode(),
            headers={
                "Authorization": f"Bearer {self.secret}",
                "Content-Type": "application/json",
            },
        )
        with urllib.request.urlopen(request, timeout=60) as reply:
            return json.loads(reply.read())

    def frame_id(self, camera: str, place: int = 0) -> int:
        statement = """select f.id from frames f join cameras c on c.id = f.camera_id
            where c.name = %s order by f.t_utc offset %s limit 1"""
        return int(self.ris.rows(statement, camera, place)[0][0])

    def camera_id(self, camera: str) -> int:
        return int(self.ris.rows("select id from cameras where name = %s", camera)[0][0])

    def done_query(self, box: tuple[float, ...] = BOW_TIE, **params: Any) -> str:
        """A query of the car's frame at one second, asked over the API and answered."""
        body = {"frame_id": self.frame_id("car", 2), "roi": {"box": box}, "params": params}
        query_id = str(self.ask("/v1/queries", body)["query_id"])
        self.ris.eventually(
            lambda: self.ask(f"/v1/queries/{query_id}")["state"] == "done", "the query is done"
        )
        return query_id


@pytest.fixture(scope="session")
def desk(
    tmp_path_factory: pytest.TempPathFactory, footage: dict[str, Path], chromium: str
) -> Iterator[Desk]:
    """RIS, up, with the cameras ``street`` and ``car``; the default backbone."""
    assert chromium  # asked for first: without it nothing is started
    folder = tmp_path_factory.mktemp("page")
    settings = {"RIS_THREADS": "1", "RIS_JOB_LEASE_S": "5", "RIS_SWEEP_EVERY_S": "600"}
    ris = Ris(folder / "var", settings, cwd=folder)
    secret = ris.json("up")["admin_key"]
    for clip, camera, start in (("bikes", "street", STREET_START), ("car", "car", CAR_START)):
        ris.json(
            *("ingest", str(footage[clip]), "--camera", camera),
            *("--start-time", start, "--every", "0.5"),
        )
    yield Desk(ris, str(json.loads(api_path(ris.data_dir).read_text())["url"]), secret)
    ris.run("down")


@pytest.fixture(scope="session")
def chromium() -> str:
    """Where Chromium is (RIS_TEST_CHROMIUM, or on the path)."""
    named = os.environ.get("RIS_TEST_CHROMIUM")
    found = named or shutil.which("chromium") or shutil.which("google-chrome")
    if not found:
        pytest.skip(
            "no Chromium: install it (Debian: apt install chromium), or name it in"
            " RIS_TEST_CHROMIUM"
        )
    return found


@pytest.fixture(scope="session")
def browser(chromium: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        expect.set_options(timeout=PATIENCE_MS)
        opened = playwright.chromium.launch(executable_path=chromium, args=list(CHROMIUM_FLAGS))
        yield opened
        opened.close()


@dataclass
class Visit:
    """A browser window on the page, and what it complained about."""

    url: str
    secret: str
    context: BrowserContext
    page: Page
    complaints: list[str] = field(default_factory=list)
    # A busy machine: the page asks again.
    expected: list[str] = field(default_factory=lambda: ["status of 503"])
    """Parts of complaints that a test brings about."""

    def hear(self, said: ConsoleMessage) -> None:
        """Note what the console says as an error."""
        if said.type == "error":
            self.complaints.append(said.text)

    def open(self, place: str = "", secret: str | None = None) -> Page:
        """Sign in at a place of the address."""
        self.page.goto(f"{self.url}/{place}")
        self.sign_in(secret or self.secret)
        return self.page

    def sign_in(self, secret: str) -> None:
        self.page.get_by_label("API key").fill(secret)
        self.page.get_by_role("button", name="Sign in").click()

    def open_car(self) -> Page:
        """Sign in at the man in the car, his bow tie in view."""
        page = self.open(f"#camera=car&t={CAR_TIME}")
        page.wait_for_selector(".stage img[src]")
        page.wait_for_selector(".stage:not([aria-busy])")
        return page

    def draw(self, box: tuple[float, float, float, float] = BOW_TIE) -> None:
        """Draw a box with the mouse."""
        stage = self.page.locator("#stage")
        stage.scroll_into_view_if_needed()
        at = stage.bounding_box()
        assert at is not None
        x0, y0, x1, y1 = box

        def go(x: float, y: float) -> None:
            self.page.mouse.move(at["x"] + x * at["width"], at["y"] + y * at["height"])

        go(x0, y0)
        self.page.mouse.down()
        go((x0 + x1) / 2, (y0 + y1) / 2)
        go(x1, y1)
        self.page.mouse.up()

    def place(self) -> dict[str, str]:
        """What the address says behind #."""
        fragment = self.page.evaluate("location.hash").removeprefix("#")
        return dict(part.split("=", 1) for part in fragment.split("&") if part)

    def text(self, words: str) -> Locator:
        """Where the page shows words; not where it says them to screen readers."""
        return self.page.locator("main").get_by_text(words)

    def wait_place(self, name: str) -> str:
        self.page.wait_for_function("name => location.hash.includes(name + '=')", arg=name)
        return self.place()[name]

    def assert_accessible(self, state: str) -> None:
        """axe finds nothing serious, and nothing is wider than the window."""
        found = Axe().run(self.page).response["violations"]
        serious = [
            (one["id"], [node["html"][:120] for node in one["nodes"]])
            for one in found
            if one["impact"] in ("serious", "critical")
        ]
        assert not serious, f"{state}: {serious}"
        wide = self.page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert wide <= 0, f"{state}: {wide} px wider than the window"


Visits = Callable[..., Any]


@pytest.fixture
def visits(browser: Browser) -> Iterator[Visits]:
    """Opens windows: (url, secret, width, scheme). None must have complained about anything when
    the test is over."""
    opened: list[Visit] = []

    def open_one(
        url: str,
        secret: str,
        width: int = 1280,
        scheme: Literal["light", "dark"] = "light",
        **options: Any,
    ) -> Visit:
        context = browser.new_context(
            viewport={"width": width, "height": 860},
            color_scheme=scheme,
            locale="en-GB",
            timezone_id="Europe/Berlin",
            **options,
        )
        context.set_default_timeout(PATIENCE_MS)
        visit = Visit(url, secret, context, context.new_page())
        page = visit.page
        page.add_init_script(
            "addEventListener('securitypolicyviolation', (event) =>"
            " console.error('CSP: ' + event.violatedDirective + ' ' + event.blockedURI))"
        )
        page.on("console", visit.hear)
        page.on("pageerror", lambda error: visit.complaints.append(str(error)))
        opened.append(visit)
        return visit

    yield open_one
    for visit in opened:
        visit.context.close()
        unexpected = [
            said for said in visit.complaints if not any(part in said for part in visit.expected)
        ]
        assert unexpected == []


@pytest.fixture
def visit(visits: Visits, desk: Desk) -> Visit:
    """One window of 1280 px, light, on the real RIS."""
    made: Visit = visits(desk.url, desk.secret)
    return made


@contextmanager
def offline(visit: Visit) -> Iterator[None]:
    """The window's network is gone."""
    visit.expected.append("ERR_INTERNET_DISCONNECTED")
    visit.context.set_offline(True)
    yield
    visit.context.set_offline(False)
