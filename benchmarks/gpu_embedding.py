"""Embedding on a device: forward passes, end to end, two backbones; weights are random."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import IJepaConfig, IJepaModel, SiglipVisionConfig, SiglipVisionModel

from benchmarks.gpu_figures import Bench
from worker.backbones import ijepa, siglip
from worker.backbones.compiled import CompileMode, compile_blocks
from worker.backbones.overlapped import Batching, OverlappedBackbone
from worker.backbones.staged import side_by_side, unit_rows
from worker.backbones.vision_transformer import VisionFamily, VitBackbone
from worker.core.backbone_spec import BackboneSpec
from worker.core.types import GridSize, ImageArray, SizePx

RANDOM = "random weights: of speed only"
PATCH_PX = 14


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of one vision transformer."""

    name: str
    kind: str
    width: int
    layers: int
    heads: int
    inner: int
    side_px: int = 224

    @property
    def cells(self) -> int:
        """Patches of a picture."""
        return (self.side_px // PATCH_PX) ** 2

    def flop(self) -> float:
        """Of one picture's pass, multiplications and additions: linear layers and attention of
        every block; what pools and embeds patches is left out, which makes rates smaller."""
        linear = self.cells * (4 * self.width**2 + 2 * self.width * self.inner)
        return 2.0 * self.layers * (linear + 2 * self.cells**2 * self.width)


FULL = (
    Shape("ijepa_vith14", "ijepa", 1280, 32, 16, 5120),
    Shape("siglip2-so400m-patch14-224", "siglip", 1152, 27, 16, 4304),
)
MINIATURE = (
    Shape("ijepa-miniature", "ijepa", 64, 2, 2, 128, side_px=56),
    Shape("siglip-miniature", "siglip", 64, 2, 2, 136, side_px=56),
)


def matrix_rate(bench: Bench, dtype: torch.dtype) -> float:
    """Operations a second of a large matrix product: the limit that passes are held against."""
    side = 8192 if bench.gpu else 512
    a, b = (torch.randn((side, side), device=bench.device, dtype=dtype) for _ in range(2))
    times = 10 if bench.gpu else 2

    def run() -> None:
        for _ in range(times):
            a @ b

    return times * 2.0 * side**3 / bench.seconds(run)


def random_backbone(shape: Shape, device: torch.device, dtype: torch.dtype) -> VitBackbone:
    """A network as published in size, with the numbers it is begun with."""
    torch.manual_seed(0)
    common: dict[str, Any] = {
        "hidden_size": shape.width, "num_hidden_layers": shape.layers, "patch_size": PATCH_PX,
        "num_attention_heads": shape.heads, "intermediate_size": shape.inner,
        "image_size": shape.side_px,
    }  # fmt: skip
    family: VisionFamily
    network: Any
    with device:
        if shape.kind == "ijepa":
            family, network = ijepa.FAMILIES["ijepa"], IJepaModel(IJepaConfig(**common))
        else:
            family = siglip.FAMILIES["siglip_vision_model"]
            network = SiglipVisionModel(SiglipVisionConfig(**common))
    network = network.to(device, dtype).requires_grad_(False).eval()
    side = shape.side_px // PATCH_PX
    spec = BackboneSpec(
        name=shape.name, revision="random", weights_sha256="",
        input_size=SizePx(shape.side_px, shape.side_px), patch_px=PATCH_PX,
        grid=GridSize(side, side), global_dim=shape.width,
        patch_dim=shape.width, patch_source="last_hidden_state",
        global_pooling=family.default_pooling, mean_rgb=family.mean_rgb, std_rgb=family.std_rgb,
        resize=family.resize, tau=0.6, licence="none", commercial_use=True, weights_bytes=0,
    )  # fmt: skip
    return VitBackbone(spec, family, network, "last_hidden_state", device, dtype)


def frames_a_second(bench: Bench, run: Callable[[], object], batch: int) -> float:
    times = 4 if bench.gpu else 1

    def several() -> None:
        for _ in range(times):
            run()

    with torch.inference_mode():
        return times * batch / bench.seconds(several, 5)


def noise_levels(bench: Bench, backbone: VitBackbone, batch: int) -> Tensor:
    size = (batch, 3, *backbone.spec.input_size)
    return torch.randint(0, 256, size, dtype=torch.uint8, device=bench.device)


def best_batch(
    bench: Bench, batches: tuple[int, ...], make: Callable[[int], Callable[[], object]]
) -> tuple[float, int]:
    """Frames a second at the best batch, and that batch; what does not fit is passed over."""
    best = (0.0, batches[0])
    for batch in batches:
        try:
            best = max(best, (frames_a_second(bench, make(batch), batch), batch))
        except torch.OutOfMemoryError:
            break
    return best


def forward_figures(bench: Bench, shapes: tuple[Shape, ...]) -> None:
    """Forward only, end to end, and both backbones side by side."""
    limit = matrix_rate(bench, torch.bfloat16)
    bench.tell("matrix-product-bf16", limit / 1e12, "TFLOP/s")
    made: list[tuple[VitBackbone, int]] = []
    for shape in shapes:
        if bench.left_s < 60 and bench.gpu:
            bench.leave_out(f"forward-{shape.name}", "no time left")
            continue
        bench.attempt(f"embedding-{shape.name}", partial(one, bench, shape, limit, made))
    if len(made) == 2:
        bench.attempt("two-backbones-one-upload", lambda: both(bench, made))


def one(bench: Bench, shape: Shape, limit: float, made: list[tuple[VitBackbone, int]]) -> None:
    """Forward only and end to end; the backbone is added to those made, with its best batch."""
    plain = random_backbone(shape, bench.device, torch.bfloat16)
    ours, rate, batch = forward(bench, shape, plain, limit)
    made.append((ours, batch))
    end_to_end(bench, shape, ours, rate, batch)


def forward(
    bench: Bench, shape: Shape, plain: VitBackbone, limit: float
) -> tuple[VitBackbone, float, int]:
    """The backbone as it is fastest here, its frames a second, and the batch."""
    batches = (32, 64, 128, 256) if bench.gpu else (2, 4)

    def eager(batch: int) -> Callable[[], object]:
        size = (batch, 3, *plain.spec.input_size)
        pixels = torch.randn(size, device=bench.device, dtype=plain.dtype)
        return lambda: plain.network(pixel_values=pixels)

    peer_rate, peer_batch = best_batch(bench, batches, eager)
    best: tuple[float, VitBackbone, int, str] = (0.0, plain, batches[0], "")
    for name, backbone in variants(bench, plain):

        def staged(batch: int, backbone: VitBackbone = backbone) -> Callable[[], object]:
            levels = noise_levels(bench, backbone, batch)
            return lambda: unit_rows(backbone, levels)

        near = (peer_batch,) if name != "not compiled" else batches
        try:
            alike = least_cosine(bench, plain, backbone, near[0])
            rate, batch = best_batch(bench, near, staged)
        except Exception as error:  # compilers fail in many ways; others are measured
            bench.leave_out(f"forward-{shape.name} ({name})", str(error)[:200])
            continue
        bench.tell(
            f"forward-{shape.name} ({name}, batch {batch})", rate, "frames/s",
            peer=f"transformers eager bf16, batch {peer_batch}", peer_value=peer_rate,
            ratio=rate / peer_rate, goal=">= 1.3", least_cosine_to_eager=round(alike, 5),
            of_matrix_product=round(rate * shape.flop() / limit, 3), weights=RANDOM,
        )  # fmt: skip
        if alike >= 0.99:
            best = max(best, (rate, backbone, batch, name), key=lambda found: found[0])
    rate, backbone, batch, name = best
    bench.tell(
        f"forward-{shape.name}-of-limit", rate * shape.flop() / 1e12, "TFLOP/s",
        peer="large bf16 matrix product, same run", peer_value=limit / 1e12,
        ratio=rate * shape.flop() / limit, goal=">= 0.7", variant=name, weights=RANDOM,
    )  # fmt: skip
    return backbone, rate, batch


def variants(bench: Bench, plain: VitBackbone) -> Iterator[tuple[str, VitBackbone]]:
    """Ways to run the network; each compiled one is a copy, so that the plain one stays so."""
    yield "not compiled", plain
    modes: tuple[CompileMode, ...] = ("default", "max-autotune-no-cudagraphs")
    for mode in modes if bench.gpu else ():
        if bench.left_s < 120:
            bench.leave_out(f"forward-{plain.spec.name} (compiled, {mode})", "no time left")
            return
        network = copy.deepcopy(plain.network)
        compile_blocks(network, mode)
        yield (
            f"compiled, {mode}",
            VitBackbone(
                plain.spec, plain.family, network, plain.tokens_from, plain.device, plain.dtype
            ),
        )


def least_cosine(bench: Bench, plain: VitBackbone, other: VitBackbone, batch: int) -> float:
    """Of any patch's descriptor with that of the plain network."""
    levels = noise_levels(bench, plain, batch)
    with torch.inference_mode():
        a, b = (unit_rows(backbone, levels).patches_ncd for backbone in (plain, other))
        return float((a * b).sum(dim=-1).min())


def end_to_end(bench: Bench, shape: Shape, ours: VitBackbone, rate: float, batch: int) -> None:
    """From uint8 frames in host memory to int8 descriptors there, of several threads."""
    rng = np.random.default_rng(0)
    imgs_hwc: list[ImageArray] = [
        rng.integers(0, 256, (*ours.spec.input_size, 3), dtype=np.uint8) for _ in range(batch)
    ]
    # One size, and the deadline long enough that batches are full.
    embedder = OverlappedBackbone(ours, Batching(batch, 0.2, (batch,)))
    warm_up_s = embedder.start()
    rounds = 12 if bench.gpu else 2
    callers = 4

    def caller() -> None:
        for _ in range(rounds):
            embedder.embed_stored(imgs_hwc, "int8")

    threads = [threading.Thread(target=caller) for _ in range(callers)]
    started_s = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = callers * rounds * batch / (time.perf_counter() - started_s)
    embedder.close()
    bench.tell(
        f"end-to-end-{shape.name} (uint8 in host memory to int8 descriptors, {callers} threads)",
        found, "frames/s", peer="forward only, same run", peer_value=rate, ratio=found / rate,
        goal=">= 0.9", warm_up_s=round(warm_up_s, 1), weights=RANDOM,
    )  # fmt: skip


def both(bench: Bench, made: list[tuple[VitBackbone, int]]) -> None:
    """Two backbones from one upload, against each from its own."""
    backbones = [backbone for backbone, _ in made]
    batch = min(batch for _, batch in made)
    host = noise_levels(bench, backbones[0], batch).cpu()
    host = host.pin_memory() if bench.gpu else host

    def shared() -> None:
        side_by_side(backbones, host.to(bench.device, non_blocking=True))

    def apart() -> None:
        for backbone in backbones:
            side_by_side([backbone], host.to(bench.device, non_blocking=True))

    rate, peer_rate = (frames_a_second(bench, run, batch) for run in (shared, apart))
    bench.tell(
        "two-backbones-one-upload", rate, "frames/s through both", peer="an upload each",
        peer_value=peer_rate, ratio=rate / peer_rate, batch=batch, weights=RANDOM,
    )  # fmt: skip
