"""Evaluation of a labelled dataset: the report's contract, and its figures against trec_eval."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import pytrec_eval
from PIL import Image

from tests.conftest import Services
from tests.parts import fresh_context, sql
from worker.context import Context
from worker.core.geometry import scaled_box
from worker.core.search_params import SearchParams, Strategy
from worker.core.types import Box
from worker.describe import describe_query
from worker.errors import InputInvalid, NotFound, PictureInvalid
from worker.evaluation import PROFILES, STRATEGIES, evaluate_dataset, index_dataset
from worker.labelled import Dataset, read_dataset
from worker.search import search_generation

METRICS = {"map", "r1", "r5", "r10", "map_other", "r1_other", "r5_other"}


def line(image: str, scene: str, camera: str, time_s: float, w: int, h: int) -> dict[str, Any]:
    return {
        "image": image,
        "scene": scene,
        "camera": camera,
        "time": time_s,
        "width": w,
        "height": h,
        "labelled": True,
        "boxes": [
            {"id": f"{scene}-1", "xyxy": [w * 0.25, h * 0.25, w * 0.75, h], "class": "person",
             "visibility": 1.0, "source": "own"}
        ],
        "maybe": [],
    }  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, footage: dict[str, Path]) -> Path:
    """Two scenes of real footage, one of them seen by two cameras (the second one mirrored).

    Each camera of that scene also shows two pictures without the subject.
    """
    folder = tmp_path_factory.mktemp("dataset") / "two-scenes"
    frames: list[dict[str, Any]] = []
    for clip, scene, numbers in (("car", "call", range(0, 120, 20)), ("bikes", "street", [5, 30])):
        with av.open(str(footage[clip])) as video:
            pictures = [np.asarray(p.to_ndarray(format="rgb24")) for p in video.decode(video=0)]
        for number in numbers:
            mirrored = scene == "call" and number % 40 == 20
            camera = f"{scene}/{'left' if mirrored else 'right'}"
            image = f"frames/{camera}/{number:06}.png"
            path = folder / image
            path.parent.mkdir(parents=True, exist_ok=True)
            img_hwc = pictures[number][:, ::-1] if mirrored else pictures[number]
            Image.fromarray(np.ascontiguousarray(img_hwc)).save(path)
            h_px, w_px = img_hwc.shape[:2]
            frames.append(line(image, scene, camera, number / 25, w_px, h_px))
    labelled = list(frames)
    for number, camera in enumerate(("call/left", "call/right", "call/left", "call/right")):
        image = f"frames/{camera}/empty{number}.png"
        shade = np.random.default_rng(number).integers(0, 256, (9, 11, 3), dtype=np.uint8)
        Image.fromarray(shade).resize((176, 144)).save(folder / image)
        frames.append({**line(image, "call", camera, 10.0 + number, 176, 144), "boxes": []})
    queries = []
    for frame in labelled:
        same = [f for f in labelled if f["scene"] == frame["scene"] and f is not frame]
        queries.append(
            {
                "query_image": frame["image"],
                "roi": frame["boxes"][0]["xyxy"],
                "id": frame["boxes"][0]["id"],
                "class": "person",
                "scene": frame["scene"],
                "camera": frame["camera"],
                "time": frame["time"],
                "kind": "box",
                "positives": [f["image"] for f in same][:4],
                "positives_other_camera": [
                    f["image"] for f in same[:4] if f["camera"] != frame["camera"]
                ],
                "ignore": [f["image"] for f in same][4:],
            }
        )
    for name, rows in (("frames", frames), ("queries", queries)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text)
    return folder


@pytest.fixture(scope="module")
def dataset(folder: Path) -> Dataset:
    return read_dataset(folder)


@pytest.fixture(scope="module")
def tiny(
    services: Services, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Context]:
    root = tmp_path_factory.mktemp("evaluation")
    with fresh_context(
        services.database_url, template_database, root, backbone="tiny-a"
    ) as context:
        yield context


@pytest.fixture(scope="module")
def report(tiny: Context, dataset: Dataset) -> dict[str, Any]:
    told: list[str] = []
    made = evaluate_dataset(
        tiny, dataset, base_params=SearchParams(tau=-1.0, limit=3), tell=told.append
    )
    assert "indexed 12 of 12 frames" in told
    return made


def test_the_dataset_is_read_as_documented(dataset: Dataset) -> None:
    assert (len(dataset.frames), len(dataset.queries)) == (12, 8)
    first, query = dataset.frames[0], dataset.queries[0]
    assert (first.image, first.camera) == ("frames/call/right/000000.png", "call/right")
    assert first.boxes == {"call-1": Box(0.25, 0.25, 0.75, 1.0)}
    assert query.roi == Box(0.25, 0.25, 0.75, 1.0)
    assert query.positives_other_camera < query.positives
    assert query.image in query.ignore
    assert len(query.ignore) == 2


def test_the_reports_shape_is_the_contract(report: dict[str, Any]) -> None:
    assert set(report) == {"dataset", "backbone", "frames", "queries", "strategies"}
    assert (report["dataset"], report["backbone"]) == ("two-scenes", "tiny-a")
    assert (report["frames"], report["queries"]) == (12, 8)
    assert set(report["strategies"]) == set(STRATEGIES)
    assert {
        "whole-frame", "default", "vote-majority", "vote-unique", "vote-weighted",
        "vote-weighted-unique", "grow-rigid", "grow-elastic",
    } <= set(STRATEGIES)  # fmt: skip
    for found in report["strategies"].values():
        assert set(found) == {
            *("macro", "scenes", "stage1_recall", "median_iou", "query_ms"),
            *("scale_r1", "false_match_ratio", "duplicates_at_20"),
        }
        assert set(found["macro"]) == METRICS
        assert set(found["scenes"]) == {"call", "street"}
        assert all(set(fields) == METRICS | {"queries"} for fields in found["scenes"].values())
        assert set(found["stage1_recall"]) == {"50", "200"}
        assert set(found["query_ms"]) == {"p50", "p95"}
    assert json.loads(json.dumps(report)) == report


def test_values_are_shares_or_null(report: dict[str, Any]) -> None:
    for found in report["strategies"].values():
        groups = [found["macro"], found["stage1_recall"], {"iou": found["median_iou"]}]
        groups += [
            {name: value for name, value in fields.items() if name != "queries"}
            for fields in found["scenes"].values()
        ]
        for value in (value for group in groups for value in group.values()):
            assert value is None or 0 <= value <= 1
        assert found["median_iou"] is not None
        assert found["stage1_recall"] == {"50": 1.0, "200": 1.0}
        assert 0 < found["query_ms"]["p50"] <= found["query_ms"]["p95"]


def test_what_is_undefined_is_null_and_left_out_of_the_mean(report: dict[str, Any]) -> None:
    """The street has one camera: its other-camera figures do not exist."""
    for found in report["strategies"].values():
        street, call = found["scenes"]["street"], found["scenes"]["call"]
        assert street["map_other"] is street["r1_other"] is street["r5_other"] is None
        assert (street["queries"], call["queries"]) == (2, 6)
        assert found["macro"]["map_other"] == call["map_other"]
        assert found["macro"]["map"] == pytest.approx((street["map"] + call["map"]) / 2)


def rankings(context: Context, dataset: Dataset, strategy: Strategy) -> dict[str, list[str]]:
    """Ranked images per query image through the same search, ignored ones taken out."""
    generation, frame_ids = index_dataset(context, dataset, lambda _text: None)
    image_of = {frame_id: image for image, frame_id in frame_ids.items()}
    params = SearchParams(strategy=strategy, tau=-1.0)
    found = {}
    for query in dataset.queries:
        frame_id = frame_ids[query.image]
        descriptors = describe_query(context, generation, query.roi, params, frame_id=frame_id)
        searched = search_generation(
            context, generation, descriptors, params, exclude_frame_id=frame_id
        )
        images = [image_of[hit.frame_id] for hit in searched.ranked]
        found[query.image] = [image for image in images if image not in query.ignore]
    return found


@pytest.mark.parametrize("strategy", [Strategy.WHOLE_FRAME, Strategy.MAX_SIM])
def test_figures_are_those_of_trec_eval(
    tiny: Context, dataset: Dataset, report: dict[str, Any], strategy: Strategy
) -> None:
    ranked = rankings(tiny, dataset, strategy)
    names = {"map": "map", "r1": "success_1", "r5": "success_5", "r10": "success_10"}
    for scene, suffix in (("call", ""), ("street", ""), ("call", "_other")):
        queries = [query for query in dataset.queries if query.scene == scene]
        positives, run = {}, {}
        for query in queries:
            images = ranked[query.image]
            wanted = query.positives
            if suffix:
                wanted = query.positives_other_camera
                images = [i for i in images if i in wanted or i not in query.positives]
            positives[query.image] = dict.fromkeys(wanted, 1)
            run[query.image] = {image: 1.0 / (at + 1) for at, image in enumerate(images)}
        judge = pytrec_eval.RelevanceEvaluator(positives, {"map", "success.1,5,10"})
        oracle = judge.evaluate({query: found for query, found in run.items() if found})
        fields = report["strategies"][strategy.value]["scenes"][scene]
        for name, theirs in names.items():
            if f"{name}{suffix}" in fields:
                of_each = [oracle.get(query, {}).get(theirs, 0.0) for query in positives]
                expected = pytest.approx(float(np.mean(of_each)))
                assert fields[f"{name}{suffix}"] == expected, (scene, name)


def test_evaluating_again_indexes_nothing_twice(
    tiny: Context, dataset: Dataset, report: dict[str, Any]
) -> None:
    again = evaluate_dataset(
        tiny, dataset, strategies=["max-sim"], base_params=SearchParams(tau=-1.0, limit=3)
    )
    assert sql(tiny, "select count(*) from frames") == [(12,)]
    assert sql(tiny, "select sum(frame_count) from shards") == [(12,)]
    assert again["strategies"]["max-sim"]["macro"] == report["strategies"]["max-sim"]["macro"]


@pytest.mark.parametrize("limit", [0, 1, 3])
def test_a_limit_takes_the_first_queries(tiny: Context, dataset: Dataset, limit: int) -> None:
    """With none at all every figure is undefined, not an error."""
    made = evaluate_dataset(tiny, dataset, strategies=["grow-rigid"], limit=limit)
    found = made["strategies"]["grow-rigid"]
    assert (made["frames"], made["queries"]) == (12, limit)
    assert sum(fields["queries"] for fields in found["scenes"].values()) == limit
    if limit == 0:
        assert set(found["macro"].values()) == {None}
        assert found["query_ms"] == {"p50": None, "p95": None}


def test_a_gate_that_drops_positives_costs_recall(tiny: Context, dataset: Dataset) -> None:
    made = evaluate_dataset(
        tiny, dataset, strategies=["max-sim", "whole-frame"], base_params=SearchParams(top_n=1)
    )
    gated, baseline = made["strategies"]["max-sim"], made["strategies"]["whole-frame"]
    assert gated["stage1_recall"]["200"] < 1
    assert gated["scenes"]["call"]["map"] <= 0.25
    assert baseline["stage1_recall"]["200"] == 1


def malformed(folder: Path, target: Path, name: str, text: str) -> Path:
    target.mkdir()
    for kept in ("frames", "queries"):
        source = (folder / f"{kept}.jsonl").read_text()
        first = source.splitlines()[0]
        content = f"{first}\n{text}\n" if kept == name else source
        (target / f"{kept}.jsonl").write_text(content)
    return target


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("frames", "{", "not|malformed"),
        ("frames", "[1]", "malformed"),
        ("frames", '{"image": "a"}', "'width' is missing"),
        ("frames", '{"image":"a","width":0,"height":4,"boxes":[{"id":1,"xyxy":[0,0,1,1]}]}', "ze"),
        ("queries", '{"query_image": "nowhere.jpg"}', "nowhere.jpg"),
        ("queries", '{"query_image":"frames/call/right/000000.png","roi":[5,5,5,9]}', "extent"),
        ("queries", '{"query_image":"frames/call/right/000000.png","roi":[5]}', "malformed"),
        ("queries", '{"query_image":"frames/call/right/000000.png","roi":["a",1,2,3]}', "malf"),
    ],
)  # fmt: skip
def test_a_malformed_line_is_named(
    folder: Path, tmp_path: Path, name: str, text: str, says: str
) -> None:
    bad = malformed(folder, tmp_path / "bad", name, text)
    with pytest.raises(InputInvalid, match=says) as refusal:
        read_dataset(bad)
    assert f"{name}.jsonl:2" in str(refusal.value)


def test_a_folder_that_is_no_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputInvalid, match=r"frames\.jsonl"):
        read_dataset(tmp_path)


def test_a_picture_that_is_missing_is_named(folder: Path, tmp_path: Path, tiny: Context) -> None:
    bad = malformed(folder, tmp_path / "bad", "other", "")
    with pytest.raises((PictureInvalid, NotFound), match=r"000000\.png"):
        evaluate_dataset(tiny, read_dataset(bad))


def test_the_shared_dataset_can_be_read(shared_data: Path) -> None:
    made = read_dataset(shared_data / "ris-dev")
    assert (len(made.frames), len(made.queries)) == (463, 89)
    images = {frame.image for frame in made.frames}
    for query in made.queries:
        assert query.positives <= images
        assert query.positives_other_camera <= query.positives
        assert not query.positives & query.ignore


def test_profiles_change_what_they_say(tiny: Context, dataset: Dataset) -> None:
    made = evaluate_dataset(tiny, dataset, strategies=PROFILES["all"])["strategies"]
    assert set(made) == set(PROFILES["all"])
    assert made["without-all"]["macro"]["map"] is not None
    for found in made.values():
        assert set(found["duplicates_at_20"]) == {"frames", "appearances"}
        assert set(found["scale_r1"]) == {"same", "half-to-double"}
        assert set(found["false_match_ratio"]) == {"0.3", "1", "3", "10"}
    assert made["max-sim"]["false_match_ratio"]["1"] is None  # says nothing of chance
    assert made["default"]["duplicates_at_20"]["appearances"] == 0


def test_a_box_is_scaled_about_its_centre_and_cut_at_the_edge() -> None:
    scaled = scaled_box(Box(0.4, 0.4, 0.6, 0.8), 1.5)
    assert (scaled.x0, scaled.y0, scaled.x1, scaled.y1) == pytest.approx((0.35, 0.3, 0.65, 0.9))
    assert scaled_box(Box(0.0, 0.4, 0.2, 0.8), 2.0).x0 == 0.0
