"""Listing, lookup order, and every way in which a backbone can be absent."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from worker.backbones.base import BatchingBackbone
from worker.backbones.devices import describe_device, describe_torch, usable_device
from worker.backbones.embedder import embed_batched, set_threads
from worker.backbones.registry import list_backbones, load_backbone
from worker.config import Settings
from worker.errors import InputInvalid, NotFound, WeightsMissing
from worker.runtime import BackboneCache

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def no_hub_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_listing_loads_neither_torch_nor_transformers():
    code = (
        "import sys; from worker.backbones.registry import list_backbones; list_backbones();"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_list_states_licence_size_and_what_is_here(tiny_folder, tmp_path):
    tiny_folder("dinov2", "our-own")
    (tmp_path / "no-backbone").mkdir()
    entries = {entry.name: entry for entry in list_backbones(tmp_path)}
    assert entries["efficientnet-lite0"].available
    assert (entries["efficientnet-lite0"].weights_bytes or 0) > 10_000_000
    assert (entries["ijepa_vith14_1k"].licence, entries["ijepa_vith14_1k"].commercial_use) == (
        "CC-BY-NC-4.0",
        False,
    )
    assert not entries["siglip2-so400m-patch14-224"].available
    own = entries["our-own"]
    assert (own.available, own.licence, own.commercial_use) == (True, "unstated", False)
    assert "no-backbone" not in entries


def test_a_known_name_is_taken_from_the_folder_first(tiny_folder, tmp_path):
    tiny_folder("dinov2", "dinov2-small")
    spec = load_backbone("dinov2-small", backbones_dir=tmp_path).spec
    assert (spec.name, spec.revision, spec.licence) == ("dinov2-small", "local", "Apache-2.0")
    assert spec.patch_dim == 24
    listed = {entry.name: entry for entry in list_backbones(tmp_path)}["dinov2-small"]
    assert listed.available
    assert listed.weights_bytes == spec.weights_bytes


def test_an_own_name_is_found_in_the_folder(tiny_folder, tmp_path):
    tiny_folder("siglip_vision_model", "our-own")
    spec = load_backbone("our-own", backbones_dir=tmp_path).spec
    assert (spec.name, spec.licence, spec.commercial_use) == ("our-own", "unstated", False)


def test_a_cached_hub_snapshot_is_used_and_gives_the_revision(tiny_folder, tmp_path):
    """The cache is laid out as the hub client does it; no network is needed."""
    repository = tmp_path / "hub" / "models--facebook--dinov2-small"
    commit = "ed25f3a31f01632728cabb09d1542f84ab7b0056"
    tiny_folder("dinov2", f"hub/{repository.name}/snapshots/{commit}")
    spec = load_backbone("dinov2-small").spec
    assert (spec.name, spec.revision, spec.patch_dim) == ("dinov2-small", commit, 24)
    assert "dinov2-small" in [entry.name for entry in list_backbones() if entry.available]


def test_missing_weights_name_the_places_and_the_remedy(tmp_path):
    with pytest.raises(WeightsMissing) as caught:
        load_backbone("ijepa_vith14_1k", backbones_dir=tmp_path / "mine")
    message = str(caught.value)
    for part in ("ijepa_vith14_1k", str(tmp_path / "mine"), str(tmp_path / "hub"), "To fix"):
        assert part in message


def test_an_unreachable_hub_is_given_up_at_once(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # the discard port: refused
    with pytest.raises(WeightsMissing, match="cannot be reached"):
        load_backbone("dinov2-base")


def test_weights_that_are_not_on_the_hub_say_so():
    with pytest.raises(WeightsMissing, match="not published"):
        load_backbone("vit_s14_8blocks")


@pytest.mark.parametrize("name", ["resnet-9000", "", ".."])
def test_an_unknown_name_lists_the_known_ones(name, tmp_path):
    with pytest.raises(NotFound, match="efficientnet-lite0, siglip2"):
        load_backbone(name, backbones_dir=tmp_path)


def test_folders_without_a_usable_config_are_refused(tmp_path):
    with pytest.raises(WeightsMissing, match=r"config\.json"):
        load_backbone(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(InputInvalid, match="'llama'"):
        load_backbone(tmp_path)


@pytest.mark.parametrize("device", ["cuda:99", "abacus", "meta", ""])
def test_an_absent_device_is_refused(device):
    with pytest.raises(InputInvalid, match="Device"):
        load_backbone("efficientnet-lite0", device=device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_without_a_gpu_auto_is_the_cpu_and_cuda_is_refused(tmp_path):
    assert usable_device("auto") == "cpu"
    ours = BackboneCache(Settings(device="auto", data_dir=tmp_path))("efficientnet-lite0")
    assert not isinstance(ours, BatchingBackbone)
    with pytest.raises(InputInvalid, match="Device 'cuda' is not usable here"):
        BackboneCache(Settings(device="cuda", data_dir=tmp_path))("efficientnet-lite0")
    ok, found = describe_device("auto")
    assert ok and found.endswith("no CUDA device")
    assert not describe_device("cuda")[0]
    assert describe_torch().startswith("built for")


def test_wrong_dtype_threads_and_batch_are_refused():
    with pytest.raises(InputInvalid, match="float64"):
        load_backbone("efficientnet-lite0", dtype="float64")  # type: ignore[arg-type]
    with pytest.raises(InputInvalid, match="Threads"):
        set_threads(-1)
    with pytest.raises(InputInvalid, match="Batch"):
        embed_batched(load_backbone("efficientnet-lite0"), [], batch=0)


def test_batches_are_joined_in_order(tiny_folder, noise_pictures):
    backbone = load_backbone(tiny_folder("dinov2"))
    whole, split = backbone.embed(noise_pictures), embed_batched(backbone, noise_pictures, batch=2)
    assert np.allclose(whole.global_nd, split.global_nd, atol=1e-5)
    with pytest.raises(InputInvalid, match="No picture"):
        embed_batched(backbone, [], batch=2)
