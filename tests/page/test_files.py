"""The page's files as they are served: headers, names, and nothing from elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from api.app import make_app
from api.desk import open_desk
from api.routes.page import page_files
from worker.config import Settings

FOLDER = Path(__file__).resolve().parents[2] / "api" / "page"
NAMES = sorted(path.name for path in FOLDER.iterdir())
SCRIPTS = [name for name in NAMES if name.endswith(".mjs")]


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    app = make_app(open_desk(Settings(database_url="postgresql://nowhere/ris")))
    yield TestClient(app)  # not entered: its database is nowhere


def test_the_page_is_at_the_root_with_a_strict_policy(client):
    answer = client.get("/")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    policy = dict(
        part.split(" ", 1) for part in answer.headers["Content-Security-Policy"].split("; ")
    )
    assert policy == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self' blob:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert answer.headers["Cache-Control"] == "no-cache"


@pytest.mark.parametrize("name", NAMES)
def test_every_file_is_served_and_known_by_its_tag(client, name):
    answer = client.get(f"/page/{name}")
    assert answer.status_code == 200
    assert answer.content == (FOLDER / name).read_bytes()
    same = client.get(f"/page/{name}", headers={"If-None-Match": answer.headers["ETag"]})
    assert (same.status_code, same.content) == (304, b"")
    assert same.headers["Content-Security-Policy"] == answer.headers["Content-Security-Policy"]
    assert client.get(f"/page/{name}", headers={"If-None-Match": '"other"'}).status_code == 200
    assert client.head(f"/page/{name}").status_code == 200


@pytest.mark.parametrize(
    "path", ["/page/", "/page/app.py", "/page/..%2fapp.py", "/page/%2e%2e/app.py", "/page/x/y.mjs"]
)
def test_nothing_else_is(client, path):
    answer = client.get(path)
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


def test_all_that_is_named_is_there():
    index = (FOLDER / "index.html").read_text()
    named = set(re.findall(r'(?:href|src)="/page/([^"]+)"', index))
    for name in SCRIPTS:
        named |= set(re.findall(r'from "\./([^"]+)"', (FOLDER / name).read_text()))
    assert named | {"index.html"} == set(NAMES) == set(page_files())


@pytest.mark.parametrize("name", NAMES)
def test_nothing_comes_from_elsewhere_and_foreign_text_stays_text(name):
    text = (FOLDER / name).read_text()
    outside = set(re.findall(r"https?://[^\s\"'`)]+", text)) - {"http://www.w3.org/2000/svg"}
    assert outside == set()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text)
    if name.endswith(".html"):
        assert not re.search(r"<style|<script(?![^>]*\bsrc=)|\sstyle=|\son\w+=", text)


@pytest.mark.parametrize("name", SCRIPTS)
def test_modules_stay_readable(name):
    assert len((FOLDER / name).read_text().splitlines()) <= 300


def test_no_word_of_the_page_claims_more_than_likeness():
    for name in SCRIPTS:
        words = (FOLDER / name).read_text().lower()
        for claim in ("confirmed", "identified", "confidence", "accuracy", "% sure", "certain"):
            assert claim not in words, f"{name} says {claim!r}"
