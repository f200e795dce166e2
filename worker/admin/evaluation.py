"""`ris eval`: measure search quality on a labelled dataset with the product's own code."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from worker.admin.output import console, emit_json, notes, table
from worker.config import Settings, settings
from worker.context import Context
from worker.core.search_params import Strategy
from worker.embedded.control import start_supervisor, stop_supervisor
from worker.errors import InputInvalid, SetupFailed
from worker.evaluation import PROFILES, evaluate_dataset
from worker.labelled import read_dataset
from worker.runtime import make_context


def evaluate(
    dataset_dir: Annotated[Path, typer.Argument(help="Folder with frames.jsonl, queries.jsonl.")],
    backbone: Annotated[str | None, typer.Option(help="Default: RIS_BACKBONE.")] = None,
    strategy: Annotated[
        list[str] | None, typer.Option(help="Only these (repeatable); default: all.")
    ] = None,
    profile: Annotated[
        str,
        typer.Option(help="strategies, ablation, robustness, feedback or all."),
    ] = "strategies",
    device: Annotated[str | None, typer.Option(help="torch device; default: RIS_DEVICE.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N queries.")] = None,
    sealed: Annotated[
        bool, typer.Option("--sealed", help="Seal the shards before they are searched.")
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the report here.")] = None,
) -> None:
    """Ingest a labelled dataset into a throw-away index and measure every ranking strategy."""
    names = _strategies(strategy, profile)
    if json_file is not None and str(json_file) != "-" and not json_file.resolve().parent.is_dir():
        raise InputInvalid(f"--json {json_file}: its folder does not exist; make it first")
    dataset = read_dataset(dataset_dir)
    chosen = {"backbone": backbone, "device": device}
    changes = {name: value for name, value in chosen.items() if value is not None}
    with notes.status("starting") as status, _scratch_context(changes) as context:
        report = evaluate_dataset(
            context, dataset, strategies=names, limit=limit, sealed=sealed, tell=status.update
        )
    if json_file is not None and str(json_file) == "-":
        emit_json(report)
        return
    if json_file is not None:
        json_file.write_text(json.dumps(report, indent=2) + "\n")
    _show(report)


def _strategies(asked: list[str] | None, profile: str) -> list[str]:
    if profile not in PROFILES:
        raise InputInvalid(f"profile {profile!r} is unknown: use one of {', '.join(PROFILES)}")
    known = [*(strategy.value for strategy in Strategy), *PROFILES["all"]]
    for name in asked or []:
        if name not in known:
            names = ", ".join(dict.fromkeys(known))
            raise InputInvalid(f"strategy {name!r} is unknown: use one of {names}")
    return asked or list(PROFILES[profile])


@contextmanager
def _scratch_context(changes: dict[str, Any]) -> Iterator[Context]:
    """A context on an own Postgres and an own folder, both gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="ris-eval-") as folder:
        update = {**changes, "data_dir": Path(folder), "database_url": None, "broker_url": None}
        configured: Settings = settings().model_copy(update=update)
        state = start_supervisor(
            configured.data_dir,
            env={"RIS_DATABASE_URL": "", "RIS_BROKER_URL": ""},
            detach=False,
            on_progress=lambda _step: None,
            with_workers=False,
        )
        try:
            if state.database_url is None:
                raise SetupFailed("the scratch Postgres gave no address")
            context = make_context(configured, state.database_url, application_name="ris eval")
            yield context
            context.db.close()
        finally:
            stop_supervisor(configured.data_dir)


def _show(report: dict[str, Any]) -> None:
    columns = ("mAP", "R@1", "R@5", "R@10", "mAP other", "R@1 other", "R@5 other")
    keys = ("map", "r1", "r5", "r10", "map_other", "r1_other", "r5_other")
    rows = [
        (
            name,
            *(_share(found["macro"][key]) for key in keys),
            _share(found["stage1_recall"]["200"]),
            _share(found["median_iou"]),
            f"{found['query_ms']['p50'] or 0:.0f}/{found['query_ms']['p95'] or 0:.0f}",
        )
        for name, found in report["strategies"].items()
    ]
    title = (
        f"{report['dataset']}, {report['backbone']}: {report['frames']} frames,"
        f" {report['queries']} queries, macro over scenes"
    )
    table(title, ["strategy", *columns, "stage 1 @200", "IoU", "ms p50/p95"], rows)
    scenes = sorted({scene for found in report["strategies"].values() for scene in found["scenes"]})
    table(
        "mAP per scene",
        ["strategy", *scenes],
        [
            (name, *(_share(found["scenes"][scene]["map"]) for scene in scenes))
            for name, found in report["strategies"].items()
        ],
    )
    if "sealed" in report:
        table(
            "sealed shards",
            ["camera", "frames", "cells a row"],
            [(c["camera"], c["frames"], f"{c['cells'] / c['rows']:.2f}") for c in report["sealed"]],
        )
    console.print("undefined where a scene has no positives of that kind", style="dim")


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
