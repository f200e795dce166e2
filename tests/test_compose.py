"""docker-compose.yml is valid and agrees with the code. Nothing here starts a container."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from worker.config import Settings
from worker.messages import Queue, scan_queue

ROOT = Path(__file__).resolve().parents[1]
COMPOSE = ROOT / "docker-compose.yml"


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE.read_text())["services"]
    return found


def schema_check(path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    return subprocess.run([*command, str(path)], capture_output=True, text=True, check=False)


def test_valid_against_the_compose_schema(tmp_path):
    checked = schema_check(COMPOSE)
    assert checked.returncode == 0, checked.stdout + checked.stderr

    broken = tmp_path / "docker-compose.yml"
    broken.write_text(COMPOSE.read_text().replace("healthcheck:", "healthchek:"))
    assert schema_check(broken).returncode == 1


def test_every_ris_variable_is_a_setting(services):
    known = {f"RIS_{name.upper()}" for name in Settings.model_fields}
    used = {
        name
        for service in services.values()
        for name in service["environment"]
        if name.startswith("RIS_")
    }
    assert used >= {"RIS_DATABASE_URL", "RIS_BROKER_URL", "RIS_DATA_DIR", "RIS_DEVICE"}
    assert used <= known


def test_workers_of_each_profile_serve_every_queue(services):
    for profile in ("cpu", "gpu"):
        queues = [
            queue
            for service in services.values()
            if profile in service.get("profiles", [])
            for queue in service["command"][service["command"].index("-Q") + 1].split(",")
        ]
        assert sorted(queues) == sorted(get_args(Queue))


def test_scan_workers_serve_scan_queues_and_nothing_else(services):
    command = services["worker-scan"]["command"]
    queues = command[command.index("-Q") + 1]
    assert queues == "${RIS_SCAN_QUEUES:-" + ",".join(map(scan_queue, range(4))) + "}"
    assert "--pool=solo" in command
    for name in ("worker-query", "worker-ingest", "worker-scan"):
        assert services[name]["environment"]["RIS_SCAN_GROUPS"] == "${RIS_SCAN_GROUPS:-0}"


def test_gpu_workers_reserve_a_gpu_and_cpu_workers_do_not(services):
    for service in services.values():
        for_gpu = "gpu" in service.get("profiles", [])
        assert ("deploy" in service) == for_gpu
        assert (service["environment"].get("RIS_DEVICE") == "cuda") == for_gpu


def test_every_service_has_init_and_a_user_that_is_not_root(services):
    for name, service in services.items():
        assert service["init"] is True, name
        assert service["user"].split(":")[0] not in {"root", "0"}, name


def test_every_long_running_service_has_a_health_check(services):
    assert {name for name, service in services.items() if "healthcheck" not in service} == {
        "migrate"
    }
    assert services["migrate"]["restart"] == "no"


def test_no_password_has_a_default_and_only_the_api_is_published_to_this_machine(services):
    text = COMPOSE.read_text()
    secrets = re.findall(r"\$\{(\w*PASSWORD\w*)([^}]*)\}", text)
    assert {name for name, _ in secrets} == {"POSTGRES_PASSWORD", "REDIS_PASSWORD"}
    assert all(rest.startswith(":?") for _, rest in secrets)
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert published == {"api": ["127.0.0.1:8480:8480"]}


def test_image_copies_only_what_the_build_context_has(services):
    dockerfile = (ROOT / "Dockerfile").read_text()
    copied = {
        word
        for line in re.findall(r"^COPY (.+) \S+$", dockerfile, re.MULTILINE)
        for word in line.split()
    }
    allowed = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] == "!"
    }
    assert copied == allowed
    assert all((ROOT / name).exists() for name in copied)
    assert dockerfile.index("USER 10001") > dockerfile.index("RUN useradd")
    assert {s["user"] for s in services.values() if s["image"].startswith("ris:")} == {
        "10001:10001"
    }


def test_the_image_has_the_extras_but_those_for_tests_and_gpus():
    """Pinned as they are tested."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = {
        re.split("[>=]", line)[0]
        for extra, lines in extras.items()
        if extra not in ("cpu", "gpu", "demo", "dev")
        for line in lines
    }
    taken = re.search(r"grep -E '\^\(([^)]+)\)=='", (ROOT / "Dockerfile").read_text())
    assert taken is not None and set(taken[1].split("|")) == wanted
    pinned = (ROOT / "requirements-dev.lock").read_text()
    assert all(re.search(rf"^{name}==", pinned, re.MULTILINE) for name in wanted)


def test_the_listener_runs_where_a_broker_is_named(services):
    listener = services["listener"]
    assert listener["profiles"] == ["mqtt"]
    assert listener["command"] == ["python", "-m", "worker.listener"]
    assert listener["environment"]["RIS_MQTT_URL"] == "${RIS_MQTT_URL:-}"


def test_settings_that_belong_together_are_passed_together(services):
    """Without its endpoint, what is meant for another store would go to Amazon's."""
    for service in ("worker-query", "listener", "api"):
        passed = set(services[service]["environment"])
        assert passed >= {"RIS_S3_URL", "RIS_S3_ENDPOINT", "RIS_S3_REGION", "AWS_REGION"}
        assert passed >= {"RIS_MQTT_URL", "RIS_MQTT_TOPICS", "RIS_FRIGATE_URL"}
    assert set(services["api"]["environment"]) >= {"RIS_OIDC_ISSUER", "RIS_OIDC_HOSTS"}
