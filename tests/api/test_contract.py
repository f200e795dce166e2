"""The OpenAPI document is the committed one, its examples work, and the server keeps to it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.config import SchemathesisConfig

from api import openapi
from api.app import make_app
from tests.api.conftest import Api
from tests.conftest import REPO
from tests.parts import sql

CASES = int(os.environ.get("RIS_TEST_CASES_PER_OPERATION", "16"))
SCENARIOS, STEPS = CASES, 8
WANTED = 2000
"""Cases of the whole document."""

tried: Counter[str] = Counter()
"""Cases by test."""


def test_the_committed_document_is_that_of_the_code():
    same = openapi.PATH.read_text() == openapi.text()
    assert same, "docs/openapi.json is not that of the code: run python -m api.openapi"


def schema_of(api: Api) -> Any:
    config = SchemathesisConfig.from_dict(
        {
            "generation": {"with-security-parameters": False},
            "checks": {
                # Boxes without extent, unknown ids of cameras and the like are right by the schema
                # and refused by meaning.
                "positive_data_acceptance": {
                    "expected-statuses": ["2xx", "401", "403", "404", "409", "422", "415"]
                },
                "negative_data_rejection": {
                    "expected-statuses": ["400", "401", "403", "404", "409", "415", "422"]
                },
            },
        }
    )
    app = make_app(api.desk)
    return schemathesis.openapi.from_asgi("/openapi.json", app, config=config)


@pytest.fixture(scope="module")
def schema(api: Api) -> Any:
    return schema_of(api)


OPERATIONS = [
    (method.upper(), path)
    for path, methods in json.loads(openapi.PATH.read_text())["paths"].items()
    for method in methods
]


@pytest.mark.parametrize(("method", "path"), OPERATIONS, ids=" ".join)
@pytest.mark.parametrize("mode", list(GenerationMode), ids=str)
def test_the_server_keeps_to_the_document(
    api: Api, schema: Any, admin: dict[str, str], method: str, path: str, mode: GenerationMode
):
    """All checks of schemathesis, on requests that are right by the document and on wrong ones."""
    operation = schema[path][method]
    try:
        strategy = operation.as_strategy(generation_mode=mode)
    except Unsatisfiable:
        pytest.skip("nothing in it can be wrong")

    @given(case=strategy)
    @hypothesis_settings(
        max_examples=CASES,
        derandomize=True,
        database=None,
        deadline=None,  # how long a request takes is not of the document
        suppress_health_check=list(HealthCheck),
    )
    def run(case: Any) -> None:
        tried[f"{mode.value} {method} {path}"] += 1
        response = case.call(headers=admin)
        assert response.status_code < 500, response.text
        case.validate_response(response, headers=admin)

    try:
        run()
    except Unsatisfiable:
        pytest.skip("nothing in it can be wrong")


def test_the_server_keeps_to_the_document_from_answer_to_answer(
    api: Api, schema: Any, admin: dict[str, str]
):
    """Requests made of what earlier answers told: ids, addresses, what was removed."""
    # A key that revokes itself learns nothing more.
    linked = schema.exclude(method="DELETE", path="/v1/keys/{key_id}").as_state_machine()
    follows = Counter[str]()

    class Scenario(linked):  # type: ignore[misc, valid-type]
        def get_call_kwargs(self, case: Any) -> dict[str, Any]:
            return {"headers": admin}

        def validate_response(self, response: Any, case: Any, **_: Any) -> None:
            tried["linked"] += 1
            follows[case.operation.label] += response.status_code < 300
            assert response.status_code < 500, response.text
            case.validate_response(response, headers=admin)

    Scenario.run(
        settings=hypothesis_settings(
            max_examples=SCENARIOS,
            stateful_step_count=STEPS,
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
    )
    assert len(+follows) > 5, follows


def test_so_many_cases_were_tried():
    if len(tried) <= len(OPERATIONS) or os.environ.get("RIS_TEST_CASES_PER_OPERATION"):
        pytest.skip("not all of this file was run, or with another number of cases")
    assert tried.total() >= WANTED, tried.most_common()


@pytest.fixture
def admin(api: Api) -> dict[str, str]:
    return api.key("admin")  # of its own for each operation: one of them revokes keys


def test_examples_of_the_document_work(api: Api, admin: dict[str, str], tmp_path: Path):
    schemas = json.loads(openapi.PATH.read_text())["components"]["schemas"]
    (tmp_path / "yard").mkdir()
    (tmp_path / "yard" / "0800.mp4").symlink_to(tmp_path / "0800.mp4")
    shutil.copy(api.footage / "bikes.mp4", tmp_path / "0800.mp4")
    # Whoever followed the document before has made its camera and its role.
    sql(api.context, "update api_keys set revoked_at = now() where role = 'ris-desk'")
    sql(api.context, "update cameras set name = name || '-' || id where name = 'gate'")
    tried = 0
    with api.with_settings(footage_dir=tmp_path, fetch_hosts="frigate") as client:
        for path, schema in (
            ("/v1/cameras", "CameraGiven"),
            ("/v1/queries", "QueryGiven"),
            ("/v1/changes", "ChangesGiven"),
            ("/v1/segments", "SegmentGiven"),
            ("/v1/feeds", "FeedGiven"),
            ("/v1/keys", "KeyGiven"),
            ("/v1/webhooks", "WebhookGiven"),
            ("/v1/standing-queries", "StandingGiven"),
        ):
            for example in schemas[schema]["examples"]:
                reply = client.post(path, json=example, headers=admin)
                assert reply.status_code in (201, 202), (path, example, reply.text)
                assert client.get(reply.headers["Location"], headers=admin).status_code == 200
                tried += 1
    assert tried >= 4


HEAVY = ("av", "torch", "faiss", "numba", "transformers")

SERVED = """
import sys
from fastapi.testclient import TestClient
from api.app import make_app
from api.desk import open_desk
from worker.accepting.desk import COMMAND_LINE
from worker.accepting.keys import create_key
from worker.bell import ring
from worker.config import settings

desk = open_desk(settings(), ring)
with desk.db.transaction() as session:
    _, secret = create_key(session, COMMAND_LINE, name="a", actions=["admin"])
client = TestClient(make_app(desk))
headers = {"Authorization": "Bearer " + secret}
reply = client.post(
    "/v1/queries", json={"frame_id": 1, "roi": {"box": [0.2, 0.2, 0.8, 0.8]}}, headers=headers
)
assert reply.status_code == 202, reply.text
assert client.get("/v1/frames/1/thumbnail", headers=headers).status_code == 200
print("heavy:", *(name for name in %r if name in sys.modules))
"""


def test_a_served_query_loads_nothing_heavy(api: Api, services: Any):
    """The bell included, which names a task of the workers."""
    said = subprocess.run(
        [sys.executable, "-c", SERVED % (HEAVY,)],
        env=os.environ
        | {
            "PYTHONPATH": str(REPO),
            "RIS_DATABASE_URL": str(api.context.settings.database_url),
            "RIS_BROKER_URL": services.broker_url,
            "RIS_DATA_DIR": str(api.context.settings.data_dir),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 0, said.stderr
    assert said.stdout.splitlines()[-1].split() == ["heavy:"]
