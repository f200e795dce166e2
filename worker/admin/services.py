"""`ris up`, `ris down`, `ris doctor`."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import sys
from typing import Any

from models.repositories import canaries as canary_record
from worker import tracing
from worker.accepting.desk import COMMAND_LINE
from worker.accepting.keys import create_first_key
from worker.admin.output import Json, console, emit_json, notes, size, table
from worker.bundle.signing import own_key
from worker.config import Settings, settings
from worker.embedded.control import start_supervisor, stop_supervisor
from worker.embedded.state import ServiceState, api_path
from worker.errors import IndexDamaged, RisError, ServiceUnavailable, SetupFailed
from worker.installed import faiss_packages, require_one_faiss
from worker.mqtt.subscription import broker_address, require_package
from worker.oidc.rules import issuer_rules
from worker.runtime import make_context, object_store, process_context
from worker.services import broker_url, database_url

_PACKAGES = ("av", "celery", "numpy", "psycopg", "redis", "sqlalchemy", "torch", "transformers")
_COLLECTOR_PATIENCE_S = 3.0


def start_services(configured: Settings, *, detach: bool, with_api: bool = False) -> ServiceState:
    """Start everything on the data folder, telling each step."""
    return start_supervisor(
        configured.data_dir,
        env={"RIS_DATA_DIR": str(configured.data_dir.resolve())},
        detach=detach,
        on_progress=lambda step: notes.print(f"  {step}", style="dim"),
        with_api=with_api,
    )


def up(as_json: Json = False) -> None:
    """Start RIS on the data folder: services, schema, workers, API. Returns when all are ready.

    At the very first start it makes an admin key of the API and prints it, this once.
    """
    require_one_faiss()
    if not settings().device.startswith("cpu"):
        from worker.backbones.devices import usable_device

        usable_device(settings().device)
    object_store(settings())  # what the settings ask for must be installed, and be right
    issuer_rules(settings())
    tracing.wanted(settings())
    if (broker := settings().mqtt_url) is not None:
        require_package()
        broker_address(broker.get_secret_value())
    state = start_services(settings(), detach=True, with_api=True)
    url = json.loads(api_path(settings().data_dir).read_text())["url"]
    own_key(settings())  # so that its fingerprint can be told before anything is signed
    with process_context().db.transaction() as session:
        secret = create_first_key(session, COMMAND_LINE)
    if as_json:
        told = {"data_dir": state.data_dir, "phase": state.phase, "pids": dict(state.pids)}
        emit_json({**told, "api_url": url, "admin_key": secret})
        return
    console.print(f"RIS runs on {state.data_dir} ({', '.join(state.pids)}). Stop: ris down")
    console.print(f"API: {url}", markup=False, soft_wrap=True)
    if secret is not None:
        console.print(
            f"first admin key of the API, shown this once: {secret}", markup=False, soft_wrap=True
        )


def api() -> None:
    """Serve the HTTP API in the foreground, beside services that run: what `ris up` does itself."""
    os.execv(sys.executable, [sys.executable, "-m", "api"])  # noqa: S606 - our own program


def down(as_json: Json = False) -> None:
    """Stop what `ris up` started on the data folder."""
    stopped = stop_supervisor(settings().data_dir)
    if as_json:
        emit_json({"stopped": stopped})
        return
    console.print("stopped" if stopped else f"nothing ran on {settings().data_dir.resolve()}")


def doctor(as_json: Json = False) -> None:
    """Versions, devices, services, free space and licence notes; names what cannot work."""
    configured = settings()
    checks: list[tuple[str, bool, str]] = [
        ("python", True, platform.python_version()),
        *((f"package {name}", True, importlib.metadata.version(name)) for name in _PACKAGES),
        _service_check("torch", _ask_torch),
        _service_check("faiss", _ask_faiss),
        _device_check(configured),
        _service_check("decoder", _ask_decoder),
        _service_check("hardware decoding", _ask_hardware_decoding),
        _free_space_check(configured),
        _service_check("postgres", lambda: _ping_postgres(configured)),
        _service_check("redis", lambda: _ping_redis(configured)),
        _backbone_check(configured),
        *_object_store_checks(configured),
        *_issuer_checks(configured),
        *trace_checks(configured),
        _service_check("canaries", lambda: _last_canaries(configured)),
    ]
    if as_json:
        emit_json([{"check": c, "ok": ok, "detail": detail} for c, ok, detail in checks])
    else:
        rows = [(check, "ok" if ok else "PROBLEM", detail) for check, ok, detail in checks]
        table(None, ["check", "", "detail"], rows)
    if not all(ok for _, ok, _ in checks):
        raise SystemExit(1)


def _ask_faiss() -> str:
    installed = faiss_packages()
    require_one_faiss(installed)
    from worker.index.faiss_report import describe_faiss

    works, found = describe_faiss()
    if not works:
        raise SetupFailed(f"{', '.join(installed)}: {found}")
    return f"{', '.join(installed)}: {found}"


def _ask_torch() -> str:
    from worker.backbones.devices import describe_torch

    return describe_torch()


def _ask_hardware_decoding() -> str:
    from worker.video.hardware import describe_hardware_decoding

    return describe_hardware_decoding()


def _device_check(configured: Settings) -> tuple[str, bool, str]:
    from worker.backbones.devices import describe_device

    ok, found = describe_device(configured.device)
    return "device", ok, f"RIS_DEVICE={configured.device}; {os.cpu_count()} cores, {found}"


def _free_space_check(configured: Settings) -> tuple[str, bool, str]:
    folder = configured.data_dir.resolve()
    place = next(p for p in (folder, *folder.parents) if p.exists())
    free_bytes = shutil.disk_usage(place).free
    ok = free_bytes >= configured.min_free_bytes
    return "free space", ok, f"{size(free_bytes)} at {place}"


def _service_check(name: str, ping: Any) -> tuple[str, bool, str]:
    try:
        return name, True, ping()
    except (RisError, OSError) as error:
        return name, False, str(error)
    except Exception as error:
        return name, False, f"{type(error).__name__}: {error}"


def _ping_postgres(configured: Settings) -> str:
    context = make_context(configured, database_url(configured), application_name="ris doctor")
    return f"PostgreSQL {context.db.ping()}"


def _last_canaries(configured: Settings) -> str:
    context = make_context(configured, database_url(configured), application_name="ris doctor")
    with context.db.transaction() as session:
        last = canary_record.last_check(session)
    if last is None:
        return "not asked for yet"
    told = f"{last.found} of {last.asked} stored frames found themselves, {last.age_s:.0f} s ago"
    if last.found < canary_record.ENOUGH * last.asked:
        raise IndexDamaged(f"{told}: `ris verify`, and see docs/operation.md, Canaries")
    return told


def _ask_decoder() -> str:
    from worker.video.decoding import network_of_decoders

    if network_of_decoders() == "none":
        return "apart, limited, without network"
    return "apart, limited; its network could not be taken away (the kernel or container forbids)"


def _ping_redis(configured: Settings) -> str:
    from kombu.connection import Connection

    url = broker_url(configured)
    with Connection(url, connect_timeout=3) as connection:  # type: ignore[no-untyped-call]
        client = connection.default_channel.client
        return f"Redis {client.info('server')['redis_version']}"


def _object_store_checks(configured: Settings) -> list[tuple[str, bool, str]]:
    if configured.s3_url is None:
        return []
    return [_service_check("object storage", lambda: _ask_object_store(configured))]


def _ask_object_store(configured: Settings) -> str:
    objects = object_store(configured)
    assert objects is not None
    objects.check()
    return f"{objects.url} answers"


def _issuer_checks(configured: Settings) -> list[tuple[str, bool, str]]:
    if configured.oidc_issuer is None:
        return []
    return [_service_check("issuer", lambda: _ask_issuer(configured))]


def _ask_issuer(configured: Settings) -> str:
    rules = issuer_rules(configured)
    assert rules is not None
    from worker.oidc.provider import fetch_keys

    return f"{rules.issuer} tells {len(fetch_keys(rules).keys)} keys"


def trace_checks(configured: Settings) -> list[tuple[str, bool, str]]:
    """Whether a collector takes traces, where they are wanted."""
    try:
        if not tracing.wanted(configured):
            return []
    except SetupFailed as error:
        return [("traces", False, str(error))]
    return [_service_check("traces", lambda: _ask_collector(configured))]


def _ask_collector(configured: Settings) -> str:
    from worker.tracing.otlp import ask_collector

    if not ask_collector(configured.otlp_endpoint, _COLLECTOR_PATIENCE_S):
        raise ServiceUnavailable("no collector takes spans at RIS_OTLP_ENDPOINT, or as OTEL_* say")
    return "the collector takes spans"


def _backbone_check(configured: Settings) -> tuple[str, bool, str]:
    from worker.backbones.registry import list_backbones

    for entry in list_backbones(configured.backbones_dir):
        if entry.name == configured.backbone:
            use = "commercial use allowed" if entry.commercial_use else "NON-COMMERCIAL use only"
            where = "weights present" if entry.available else "weights NOT on this machine"
            return "backbone", entry.available, f"{entry.name}: {entry.licence}, {use}, {where}"
    return "backbone", False, f"RIS_BACKBONE={configured.backbone} is unknown: see `ris backbones`"
