"""Every transformer family, loaded from a folder as the hub would give it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Dinov2Config, Dinov2Model
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

from tests.backbones.conftest import TINY, share_of_cells_found, tiny_network
from worker.backbones.embedder import embed_batched
from worker.backbones.registry import load_backbone
from worker.backbones.vision_transformer import VitBackbone, saliency_weights
from worker.core.backbone_spec import spec_from_json
from worker.errors import DescriptorInvalid, InputInvalid, WeightsMissing

DEFAULT_POOLING = {
    "siglip_vision_model": "pooled",
    "siglip": "pooled",
    "siglip2_vision_model": "pooled",
    "ijepa": "saliency-mean",
    "dinov2": "cls",
    "dinov2_with_registers": "cls",
    "dinov3_vit": "cls",
}
KINDS = list(DEFAULT_POOLING)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_cells_and_have_unit_norm(tiny_folder, noise_pictures, kind):
    backbone = load_backbone(tiny_folder(kind))
    spec = backbone.spec
    found = backbone.embed(noise_pictures)
    assert spec.grid == (4, 4)
    assert spec.global_pooling == DEFAULT_POOLING[kind]
    assert found.patches_ncd.shape == (3, spec.grid.cells, spec.patch_dim) == (3, 16, 24)
    assert found.global_nd.shape == (3, spec.global_dim) == (3, 24)
    for rows in (found.global_nd, found.patches_ncd):
        assert rows.dtype == np.float32
        assert np.allclose(np.linalg.norm(rows, axis=-1), 1, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_same_picture_same_descriptors_alone_or_in_a_batch(tiny_folder, noise_pictures, kind):
    backbone = load_backbone(tiny_folder(kind))
    together, again = backbone.embed(noise_pictures), backbone.embed(noise_pictures)
    alone = embed_batched(backbone, noise_pictures, batch=1)
    assert np.array_equal(together.patches_ncd, again.patches_ncd)
    assert np.array_equal(together.global_nd, again.global_nd)
    assert np.allclose(together.patches_ncd, alone.patches_ncd, atol=1e-5)
    assert np.allclose(together.global_nd, alone.global_nd, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_cells_follow_the_picture_row_by_row(tiny_folder, kind):
    """Changing one cell of the picture must change that row most: no shift by CLS or registers."""
    backbone = load_backbone(tiny_folder(kind))
    grey = np.full((*backbone.spec.input_size, 3), 128, dtype=np.uint8)
    changed = grey.copy()
    changed[8:16, 16:24] = np.random.default_rng(1).integers(0, 256, (8, 8, 3))
    a, b = backbone.embed([grey, changed]).patches_ncd
    assert (a * b).sum(axis=1).argmin() == 1 * 4 + 2


def test_tokens_equal_a_direct_forward_pass(tiny_folder, noise_pictures):
    """The full SigLIP checkpoint's vision tower is found under its prefix, not left random."""
    backbone = load_backbone(tiny_folder("siglip"))
    direct = tiny_network("siglip").eval().vision_model
    img_hwc = noise_pictures[0][:32, :32]
    pixels = torch.from_numpy(img_hwc.copy()).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.inference_mode():
        output = direct(pixel_values=pixels)
    found = backbone.embed([img_hwc])
    for ours, theirs in (
        (found.patches_ncd[0], output.last_hidden_state[0]),
        (found.global_nd[0], output.pooler_output[0]),
    ):
        unit = torch.nn.functional.normalize(theirs, dim=-1).numpy()
        assert np.allclose(ours, unit, atol=1e-5)


def test_naflex_patches_equal_those_of_its_processor(tiny_folder, noise_pictures):
    backbone = load_backbone(tiny_folder("siglip2_vision_model"))
    img_hwc = noise_pictures[0][:32, :32]
    inputs = Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16)(
        img_hwc, return_tensors="pt"
    )
    with torch.inference_mode():
        output = tiny_network("siglip2_vision_model").eval()(**inputs)
    theirs = torch.nn.functional.normalize(output.last_hidden_state[0], dim=-1).numpy()
    assert np.allclose(backbone.embed([img_hwc]).patches_ncd[0], theirs, atol=1e-4)


@pytest.mark.parametrize("pooling", ["mean", "saliency-mean"])
def test_mean_poolings_work_for_any_family(tiny_folder, noise_pictures, pooling):
    folder = tiny_folder("dinov2")
    default, other = load_backbone(folder), load_backbone(folder, pooling=pooling)
    assert other.spec.spec_hash != default.spec.spec_hash
    assert not np.allclose(
        default.embed(noise_pictures).global_nd, other.embed(noise_pictures).global_nd, atol=1e-3
    )


def test_a_pooling_the_family_lacks_is_refused(tiny_folder):
    with pytest.raises(InputInvalid, match="'cls' pooling"):
        load_backbone(tiny_folder("ijepa"), pooling="cls")


def test_saliency_prefers_the_cell_with_detail():
    pixels = torch.full((2, 3, 32, 32), 0.5)
    pixels[1, :, 10, 19] = 1.0  # one bright dot in row 1, column 2
    flat, dotted = saliency_weights(pixels, patch_px=8)
    assert torch.allclose(flat, torch.full((16,), 1 / 16))
    assert dotted.argmax() == 1 * 4 + 2
    # |Laplacian| of a dot of 0.5 sums to 4 * 0.5 + 4 * 0.5 = 4 over 64 px; floor: a tenth of 1/16
    cell = 4 / 64
    floor = 0.1 * cell / 16
    assert dotted.max() == pytest.approx((cell + floor) / (cell + 16 * floor), rel=1e-3)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_gives_float32_close_to_full(tiny_folder, noise_pictures, dtype):
    folder = tiny_folder("ijepa")
    full, half = load_backbone(folder), load_backbone(folder, dtype=dtype)
    assert half.spec == full.spec
    a, b = full.embed(noise_pictures), half.embed(noise_pictures)
    assert b.patches_ncd.dtype == np.float32
    assert (a.patches_ncd * b.patches_ncd).sum(axis=-1).min() > 0.99


def test_spec_hash_is_stable_and_follows_the_weights(tiny_folder):
    folder = tiny_folder("dinov2")
    spec = load_backbone(folder).spec
    assert load_backbone(folder).spec.spec_hash == spec.spec_hash
    assert spec_from_json(json.loads(json.dumps(spec.to_json()))) == spec
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    tensors["layernorm.bias"] += 0.25
    save_file(tensors, weights, metadata={"format": "pt"})
    assert load_backbone(folder).spec.spec_hash != spec.spec_hash


def test_publishers_preprocessing_is_followed(tiny_folder):
    folder = tiny_folder("dinov2")
    fields = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "resample": 2}
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(fields))
    spec = load_backbone(folder).spec
    assert (spec.mean_rgb, spec.std_rgb) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert spec.resize == "stretch-bilinear"
    path.write_text(json.dumps({**fields, "image_std": [0.0, 0.5, 0.6]}))
    with pytest.raises(InputInvalid, match="preprocessor_config"):
        load_backbone(folder)


def test_pickled_weights_are_refused(tiny_folder):
    folder = tiny_folder("dinov2")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(WeightsMissing, match="Only safetensors"):
        load_backbone(folder)


def test_damaged_weights_are_refused(tiny_folder):
    folder = tiny_folder("dinov2")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    with pytest.raises(WeightsMissing, match="cannot be loaded"):
        load_backbone(folder)


def test_lacking_tensors_are_refused_not_randomised(tiny_folder):
    folder = tiny_folder("dinov2")
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    lost = next(key for key in tensors if "attention" in key)
    del tensors[lost]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(WeightsMissing, match="lacks 1 tensors"):
        load_backbone(folder)


def test_nan_weights_give_a_typed_error(tiny_folder, noise_pictures):
    folder = tiny_folder("dinov2")
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    tensors["layernorm.weight"][3] = float("nan")
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(DescriptorInvalid, match="tiny"):
        load_backbone(folder).embed(noise_pictures)


def test_large_position_codes_still_give_the_small_grid(tmp_path):
    """DINOv2 configs say 518 px; the grid stays at 16 x 16 of their 14 px patches."""
    big = Dinov2Model(Dinov2Config(**TINY, image_size=518, patch_size=14))
    big.save_pretrained(tmp_path / "big")
    spec = load_backbone(tmp_path / "big").spec
    assert (spec.input_size, spec.grid, spec.patch_px) == ((224, 224), (16, 16), 14)


def test_real_vit_weights_find_cells_that_random_ones_do_not(shared_vit, bikes):
    real = load_backbone("vit_s14_8blocks", backbones_dir=shared_vit.parent)
    assert (real.spec.grid, real.spec.patch_dim) == ((16, 16), 384)
    assert isinstance(real, VitBackbone)
    torch.manual_seed(0)
    random = replace(real, network=type(real.network)(real.network.config).eval())
    assert share_of_cells_found(real, bikes[0]) > 0.75
    assert share_of_cells_found(random, bikes[0]) < 0.4


def test_real_vit_takes_tokens_before_the_final_norm(shared_vit, bikes, tmp_path):
    """The same folder under a name the registry does not know takes the usual, normed tokens."""
    real = load_backbone("vit_s14_8blocks", backbones_dir=shared_vit.parent)
    shutil.copytree(shared_vit, tmp_path / "other")
    other = load_backbone(tmp_path / "other")
    similarity = (real.embed(bikes).patches_ncd * other.embed(bikes).patches_ncd).sum(axis=-1)
    assert similarity.max() < 0.99
    assert other.spec.weights_sha256 == real.spec.weights_sha256
    assert other.spec.spec_hash != real.spec.spec_hash
