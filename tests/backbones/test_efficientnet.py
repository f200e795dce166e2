"""The embedded default with its real weights on real footage."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image

from tests.backbones.conftest import share_of_cells_found
from worker.backbones import efficientnet
from worker.backbones.preprocess import normalise, to_pixels
from worker.backbones.registry import load_backbone
from worker.core.types import SizePx
from worker.errors import DescriptorInvalid, InputInvalid, WeightsMissing

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("efficientnet-lite0")


def plain_network(trained: bool) -> Any:
    network = EfficientNet.from_name("efficientnet-lite0", image_size=efficientnet.INPUT_PX)
    if trained:
        path = efficientnet.packaged_weights()
        network.load_state_dict(torch.load(path, weights_only=True))
    return network.eval()


def block_outputs(network: Any, pixels: torch.Tensor) -> list[torch.Tensor]:
    x = network._swish(network._bn0(network._conv_stem(pixels)))
    outputs = []
    for block in network._blocks:
        x = block(x)
        outputs.append(x)
    return outputs


def wrapped(network: Any) -> efficientnet.EfficientNetBackbone:
    return efficientnet.from_network(
        network,
        name="random",
        revision="none",
        weights_sha256="0",
        weights_bytes=1,
        licence="none",
        tau=0.6,
        device=CPU,
        dtype=torch.float32,
    )


def test_descriptors_are_block_14_and_the_mean_of_block_15(backbone, bikes):
    """Against the package's own forward pass, without our folding and in-place work."""
    spec = backbone.spec
    with torch.inference_mode():
        pixels = to_pixels(bikes, spec.input_size, spec.resize, CPU)
        outputs = block_outputs(
            plain_network(trained=True), normalise(pixels, spec.mean_rgb, spec.std_rgb)
        )
    assert outputs[14].shape == (2, 192, 16, 16)
    assert outputs[15].shape == (2, 320, 16, 16)
    patches = outputs[14].permute(0, 2, 3, 1).reshape(2, 256, 192).numpy()
    means = outputs[15].mean(dim=(2, 3)).numpy()
    found = backbone.embed(bikes)
    assert (spec.grid, spec.patch_dim, spec.global_dim) == ((16, 16), 192, 320)
    for ours, raw in ((found.patches_ncd, patches), (found.global_nd, means)):
        theirs = raw / np.linalg.norm(raw, axis=-1, keepdims=True)
        assert ours.dtype == np.float32
        assert np.allclose(ours, theirs, atol=1e-4)


def test_the_chosen_mean_and_std_make_the_classifier_surer(phone_call):
    """ImageNet's mean and std are the tempting mistake: measured 0.71 against 0.39."""
    network = plain_network(trained=True)
    imagenet = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    pixels = to_pixels(phone_call, SizePx(224, 224), "stretch-bicubic", CPU)
    with torch.inference_mode():
        sure, unsure = (
            network(normalise(pixels, *values)).softmax(dim=1).max(dim=1).values.mean()
            for values in ((efficientnet.MEAN_RGB, efficientnet.STD_RGB), imagenet)
        )
    assert sure > 1.5 * unsure


def test_trained_weights_find_cells_that_random_ones_do_not(backbone, bikes):
    torch.manual_seed(0)
    network = plain_network(trained=False).train()  # one pass sets the norms' statistics, fairly
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    spec = backbone.spec
    with torch.no_grad():
        pixels = to_pixels(bikes, spec.input_size, spec.resize, CPU)
        block_outputs(network, normalise(pixels, spec.mean_rgb, spec.std_rgb))
    random = wrapped(network)
    for img_hwc in bikes:
        assert share_of_cells_found(backbone, img_hwc) > 0.75
        assert share_of_cells_found(random, img_hwc) < 0.3


def test_resizing_first_with_pil_changes_nothing_that_matters(backbone, bikes):
    side = efficientnet.INPUT_PX
    by_pil = np.asarray(Image.fromarray(bikes[0]).resize((side, side), Image.Resampling.BICUBIC))
    a, b = backbone.embed([bikes[0], by_pil]).patches_ncd
    assert (a * b).sum(axis=1).min() >= 0.999


def test_spec_states_licence_and_weights(backbone):
    spec = backbone.spec
    assert (spec.licence, spec.commercial_use) == ("Apache-2.0", True)
    assert spec.weights_bytes == efficientnet.packaged_weights().stat().st_size
    assert len(spec.weights_sha256) == 64
    assert load_backbone("efficientnet-lite0").spec.spec_hash == spec.spec_hash


def test_bfloat16_stays_close(backbone, bikes):
    half = load_backbone("efficientnet-lite0", dtype="bfloat16")
    a, b = backbone.embed(bikes[:1]), half.embed(bikes[:1])
    assert b.patches_ncd.dtype == np.float32
    assert (a.patches_ncd * b.patches_ncd).sum(axis=-1).mean() > 0.98


@pytest.mark.parametrize(
    "imgs_hwc",
    [
        [],
        [np.zeros((8, 8), dtype=np.uint8)],
        [np.zeros((8, 8, 4), dtype=np.uint8)],
        [np.zeros((0, 8, 3), dtype=np.uint8)],
        [np.zeros((8, 8, 3), dtype=np.float32)],
    ],
    ids=["none", "grey", "rgba", "empty", "float"],
)
def test_what_is_no_rgb_picture_is_refused(backbone, imgs_hwc):
    with pytest.raises(InputInvalid):
        backbone.embed(imgs_hwc)


def test_zero_descriptors_are_refused(bikes):
    network = plain_network(trained=True)
    torch.nn.init.zeros_(network._blocks[15]._bn2.weight)
    torch.nn.init.zeros_(network._blocks[15]._bn2.bias)
    with pytest.raises(DescriptorInvalid, match="global descriptor"):
        wrapped(network).embed(bikes)


def test_other_poolings_are_refused():
    with pytest.raises(InputInvalid, match="'mean'"):
        load_backbone("efficientnet-lite0", pooling="cls")


def test_a_damaged_package_is_named(monkeypatch, tmp_path):
    broken = tmp_path / "weights.pth"
    monkeypatch.setattr(efficientnet, "packaged_weights", lambda: broken)
    with pytest.raises(WeightsMissing, match="reinstall"):
        load_backbone("efficientnet-lite0")
    broken.write_bytes(b"not weights")
    with pytest.raises(WeightsMissing, match="cannot be read"):
        load_backbone("efficientnet-lite0")
