"""The overlapped embedder on the CPU device: same descriptors, shared batches, faults."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.backbones.conftest import tiny_network
from worker.backbones.accelerated import Acceleration, load_overlapped
from worker.backbones.base import BatchingBackbone
from worker.backbones.compiled import compile_blocks
from worker.backbones.device_claim import claim_device
from worker.backbones.embedder import embed_batched, embed_masked
from worker.backbones.faults import device_is_lost
from worker.backbones.overlapped import Batching, OverlappedBackbone, bucket_sizes
from worker.backbones.preprocess import stretched, to_levels
from worker.backbones.registry import load_backbone
from worker.backbones.staged import RawRows, StagedBackbone, side_by_side, stored_rows, unit_rows
from worker.core.masking import PrivacyMask
from worker.core.types import Box, Descriptors, ImageArray, SizePx
from worker.errors import DescriptorInvalid, DeviceFailed, InputInvalid
from worker.index.codec import codec_named

KINDS = ["siglip_vision_model", "siglip2_vision_model", "ijepa", "dinov2", "dinov3_vit"]


@dataclass
class Faulty:
    """A real backbone whose device fails as told: ``fault(levels of the batch)`` may raise, or
    give the positions whose rows turn to NaN."""

    inner: Any
    fault: Callable[[int], list[int]]
    sizes: list[int] = field(default_factory=list)

    @property
    def spec(self) -> Any:
        return self.inner.spec

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def embed(self, imgs_hwc: Any) -> Descriptors:
        found: Descriptors = self.inner.embed(imgs_hwc)
        return found

    def raw(self, pixels_nchw: Tensor) -> RawRows:
        self.sizes.append(len(pixels_nchw))
        broken = self.fault(len(pixels_nchw))
        rows = self.inner.raw(pixels_nchw)
        rows.patches_ncd[broken, 3, 5] = torch.nan
        return RawRows(rows.global_nd, rows.patches_ncd)


def sound(_count: int) -> list[int]:
    return []


@pytest.fixture
def tiny(tiny_folder) -> StagedBackbone:
    loaded: Any = load_backbone(tiny_folder("dinov2"))
    return loaded  # type: ignore[no-any-return]


@pytest.fixture
def overlapped() -> Iterator[Callable[..., OverlappedBackbone]]:
    """Started with the given arguments, and closed at the end."""
    made: list[OverlappedBackbone] = []

    def start(backbone: StagedBackbone, batching: Batching, **given: Any) -> OverlappedBackbone:
        made.append(OverlappedBackbone(backbone, batching, **given))
        made[-1].start()
        return made[-1]

    yield start
    for one in made:
        one.close()


def pictures(count: int, seed: int = 0) -> list[ImageArray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(count)]


def assert_alike(found: Descriptors, expected: Descriptors, least: float = 1 - 1e-5) -> None:
    for a, b in (
        (found.global_nd, expected.global_nd),
        (found.patches_ncd, expected.patches_ncd),
    ):
        assert a.shape == b.shape
        assert (a * b).sum(axis=-1).min() >= least


@pytest.mark.parametrize("kind", KINDS)
def test_descriptors_equal_those_of_the_plain_backbone(
    tiny_folder, overlapped, noise_pictures, kind
):
    """Pictures of any size, in an odd number of batches that are filled up to a bucket."""
    plain: Any = load_backbone(tiny_folder(kind))
    imgs_hwc = [*noise_pictures, *pictures(4)]
    found = overlapped(plain, Batching(4, buckets=(1, 2, 4))).embed(imgs_hwc)
    assert_alike(found, plain.embed(imgs_hwc))
    assert found.patches_ncd.dtype == np.float32


@pytest.mark.parametrize("kind", KINDS)
def test_resizing_on_the_device_keeps_descriptors(tiny_folder, overlapped, bikes, kind):
    plain: Any = load_backbone(tiny_folder(kind))
    found = overlapped(plain, Batching(2), resize_on_device=True).embed(bikes)
    assert_alike(found, plain.embed(bikes), least=0.999)


def resized_on_the_device(plain: Any, img_hwc: ImageArray) -> Descriptors:
    levels = torch.from_numpy(img_hwc).permute(2, 0, 1)[None]
    with torch.inference_mode():
        rows = unit_rows(plain, stretched(levels, plain.spec.input_size, plain.spec.resize))
    return Descriptors(rows.global_nd.numpy(), rows.patches_ncd.numpy())


def test_resizing_on_the_device_keeps_descriptors_of_real_weights(bikes):
    plain = load_backbone("efficientnet-lite0")
    assert_alike(resized_on_the_device(plain, bikes[0]), plain.embed(bikes[:1]), least=0.99)


def test_resizing_on_the_device_keeps_descriptors_of_a_real_transformer(bikes, shared_vit):
    plain = load_backbone(shared_vit)
    assert_alike(resized_on_the_device(plain, bikes[0]), plain.embed(bikes[:1]), least=0.99)


@pytest.mark.parametrize("resize", ["stretch-bilinear", "stretch-bicubic"])
def test_levels_resized_on_the_device_are_seldom_a_level_apart(bikes, resize):
    size = SizePx(224, 224)
    reference = to_levels(bikes, size, resize)
    whole = torch.from_numpy(np.stack(bikes)).permute(0, 3, 1, 2)
    difference = (stretched(whole, size, resize).int() - reference.int()).abs()
    assert difference.max() <= 2
    assert difference.float().mean() <= 0.02
    assert stretched(reference, size, resize) is reference


@pytest.mark.parametrize("name", ["fp32", "fp16", "int8"])
def test_stored_descriptors_are_what_the_codec_makes(tiny, overlapped, name):
    imgs_hwc = pictures(5)
    embedder, codec = overlapped(tiny, Batching(4)), codec_named(name)
    stored, plain = embedder.embed_stored(imgs_hwc, codec.name), embedder.embed(imgs_hwc)
    for ours, rows in (
        (stored.global_nd, plain.global_nd),
        (stored.patches_ncd, plain.patches_ncd),
    ):
        assert ours.dtype == codec.dtype
        assert np.array_equal(ours, codec.encode(rows))
        assert np.array_equal(codec.encode(ours), ours)  # appended as it is
        assert np.array_equal(stored_rows(torch.from_numpy(rows), codec.name).numpy(), ours)


def test_masked_cells_are_hidden_in_stored_descriptors_too(tiny, overlapped):
    imgs_hwc, codec = pictures(2), codec_named("int8")
    mask = PrivacyMask(5, (Box(0, 0, 0.5, 0.5),))
    given = (imgs_hwc, [mask, None], [SizePx(32, 32)] * 2, 2, codec)
    embedder = overlapped(tiny, Batching(2))
    assert isinstance(embedder, BatchingBackbone) and not isinstance(tiny, BatchingBackbone)
    stored = embed_masked(embedder, *given)
    plain = embed_masked(tiny, *given)
    assert stored.patches_ncd.dtype == np.int8 and plain.patches_ncd.dtype == np.float32
    assert np.abs(stored.patches_ncd.astype(int) - codec.encode(plain.patches_ncd)).max() <= 1


def test_callers_share_batches(tiny, overlapped):
    """Eight threads with a picture each: less than eight passes, each gets its own answer."""
    counted: Any = Faulty(tiny, sound)
    embedder = overlapped(counted, Batching(8, deadline_s=5.0))
    counted.sizes.clear()
    imgs_hwc, found = pictures(8), dict[int, Descriptors]()

    def embed(at: int) -> None:
        found[at] = embedder.embed([imgs_hwc[at]])

    threads = [threading.Thread(target=embed, args=(at,)) for at in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counted.sizes == [8]
    expected = tiny.embed(imgs_hwc)
    for at in range(8):
        assert_alike(found[at], Descriptors(expected.global_nd[[at]], expected.patches_ncd[[at]]))


def test_a_lone_picture_waits_no_longer_than_the_deadline(tiny, overlapped):
    counted: Any = Faulty(tiny, sound)
    embedder = overlapped(counted, Batching(64, deadline_s=0.01))
    counted.sizes.clear()
    started_s = time.monotonic()
    embedder.embed(pictures(1))
    assert counted.sizes == [1]
    assert time.monotonic() - started_s < 30  # not for ever


def test_more_pictures_than_may_wait_are_all_embedded(tiny, overlapped):
    imgs_hwc = pictures(40)
    embedder = overlapped(tiny, Batching(3))
    assert_alike(embed_batched(embedder, imgs_hwc, 1), tiny.embed(imgs_hwc))


def test_lack_of_memory_halves_the_batch_and_goes_on(tiny, overlapped):
    def fault(count: int) -> list[int]:
        if count > 2:
            raise torch.OutOfMemoryError("CUDA out of memory (told so by a test)")
        return []

    told: Any = Faulty(tiny, fault)
    embedder = overlapped(told, Batching(8, buckets=bucket_sizes(8)))
    assert embedder.limit == 2  # the warm-up met it
    told.sizes.clear()
    imgs_hwc = pictures(9)
    assert_alike(embedder.embed(imgs_hwc), tiny.embed(imgs_hwc))
    assert max(told.sizes) <= 2


def test_no_memory_for_one_picture_is_a_retryable_error_or_the_cpus(tiny, overlapped):
    full = False

    def fault(_count: int) -> list[int]:
        if full:
            raise torch.OutOfMemoryError("CUDA out of memory (told so by a test)")
        return []

    told: Any = Faulty(tiny, fault)
    alone, helped = (
        overlapped(told, Batching(2)),
        overlapped(told, Batching(2), fallback=lambda: tiny),
    )
    full = True
    with pytest.raises(DeviceFailed, match="no memory on cpu for one picture") as raised:
        alone.embed(pictures(2))
    assert raised.value.retryable
    assert_alike(helped.embed(pictures(3)), tiny.embed(pictures(3)))


def test_a_picture_with_nan_is_quarantined_and_costs_no_other(tiny, overlapped):
    bad: list[int] = []
    told: Any = Faulty(tiny, lambda _count: bad)
    embedder = overlapped(told, Batching(3, deadline_s=5.0))
    bad.append(1)
    requests = [embedder.submit([img_hwc]) for img_hwc in pictures(3)]
    with pytest.raises(DescriptorInvalid, match="NaN, infinite or zero"):
        requests[1].answer.result(60)
    expected = tiny.embed(pictures(3))
    for at in (0, 2):
        found = requests[at].answer.result(60)
        assert_alike(found, Descriptors(expected.global_nd[[at]], expected.patches_ncd[[at]]))


def test_a_picture_with_nan_is_embedded_by_the_fallback(tiny, overlapped):
    bad: list[int] = []
    told: Any = Faulty(tiny, lambda _count: bad)
    embedder = overlapped(told, Batching(4), fallback=lambda: tiny)
    bad.append(0)
    assert_alike(embedder.embed(pictures(4)), tiny.embed(pictures(4)))
    assert embedder.embed_stored(pictures(1), "int8").patches_ncd.dtype == np.int8


def test_a_lost_device_is_never_asked_again(tiny, overlapped):
    lost = False

    def fault(_count: int) -> list[int]:
        if lost:
            raise RuntimeError("CUDA error: an illegal memory access was encountered\nadvice")
        return []

    told: Any = Faulty(tiny, fault)
    loaded: list[int] = []

    def fallback() -> Any:
        loaded.append(1)
        return tiny

    embedder = overlapped(told, Batching(4), fallback=fallback)
    alone = overlapped(told, Batching(4))
    assert loaded == []
    lost = True
    told.sizes.clear()
    for _ in range(3):
        assert_alike(embedder.embed(pictures(5)), tiny.embed(pictures(5)))
    assert (len(told.sizes), loaded) == (1, [1])
    for _ in range(2):
        with pytest.raises(DeviceFailed, match="illegal memory access"):
            alone.embed(pictures(1))


def test_only_errors_of_the_device_mean_that_it_is_lost():
    assert device_is_lost(RuntimeError("CUDA error: unknown error"))
    assert not device_is_lost(RuntimeError("shapes do not fit"))
    assert not device_is_lost(torch.OutOfMemoryError("CUDA out of memory"))
    assert not device_is_lost(DeviceFailed("CUDA error: told already"))


def test_what_the_network_raises_reaches_its_caller_and_the_next_batch_goes_on(tiny, overlapped):
    told = True

    def fault(_count: int) -> list[int]:
        if not told:
            raise ValueError("told by a test")
        return []

    embedder = overlapped(Faulty(tiny, fault), Batching(2))
    told = False
    with pytest.raises(ValueError, match="told by a test"):
        embedder.embed(pictures(1))
    told = True
    assert_alike(embedder.embed(pictures(1)), tiny.embed(pictures(1)))


def test_bad_pictures_and_batchings_are_refused_at_the_door(tiny, overlapped):
    embedder = overlapped(tiny, Batching(2))
    for imgs_hwc in ([], [np.zeros((4, 4), np.uint8)], [np.zeros((4, 4, 3), np.float32)]):
        with pytest.raises(InputInvalid):
            embedder.embed(imgs_hwc)
    for batching in (
        {"largest": 0},
        {"largest": 4, "buckets": (1, 2)},
        {"largest": 1, "deadline_s": -1},
    ):
        with pytest.raises(InputInvalid):
            Batching(**batching)
    assert bucket_sizes(1) == (1,)
    assert bucket_sizes(48) == (1, 2, 4, 8, 16, 32, 48)


def test_closing_answers_who_waits(tiny):
    embedder = OverlappedBackbone(tiny, Batching(8, deadline_s=60.0))
    embedder.start()
    request = embedder.submit(pictures(1))
    embedder.close()
    with pytest.raises(DeviceFailed, match="closed"):
        request.answer.result(60)
    with pytest.raises(DeviceFailed, match="closed"):
        embedder.embed(pictures(1))


def test_two_backbones_share_one_upload(tiny_folder):
    both: Any = [load_backbone(tiny_folder(kind, kind)) for kind in ("ijepa", "dinov2")]
    imgs_hwc = pictures(3)
    levels = torch.from_numpy(np.stack(imgs_hwc)).permute(0, 3, 1, 2)
    with torch.inference_mode():
        made = side_by_side(both, levels)
    for rows, backbone in zip(made, both, strict=True):
        found = Descriptors(rows.global_nd.numpy(), rows.patches_ncd.numpy())
        assert_alike(found, backbone.embed(imgs_hwc))
        assert rows.sound_n.all()
    with pytest.raises(InputInvalid, match="share one upload"):
        side_by_side(both, levels[..., :24])


def test_attention_is_fused_in_every_family():
    """Plain attention would write a matrix of tokens by tokens for every head."""
    for kind in KINDS:
        assert tiny_network(kind).config._attn_implementation == "sdpa"


def test_compiled_blocks_give_the_same_descriptors(tiny_folder, overlapped):
    """With the compiler's front end only; its back end makes code for minutes."""
    plain: Any = load_backbone(tiny_folder("ijepa"))
    expected = plain.embed(pictures(7))
    assert compile_blocks(plain.network, backend="eager") == 2
    found = overlapped(plain, Batching(4, buckets=bucket_sizes(4))).embed(pictures(7))
    assert_alike(found, expected)
    with pytest.raises(InputInvalid, match="no stack of blocks"):
        compile_blocks(torch.nn.Linear(2, 2))


def test_loading_for_an_accelerator_keeps_the_spec(tiny_folder):
    folder = tiny_folder("dinov2")
    made = load_overlapped(
        str(folder),
        device="cpu",
        dtype="bfloat16",
        threads=0,
        backbones_dir=None,
        acceleration=Acceleration(4, 0.001, compiled=False),
    )
    plain = load_backbone(folder)
    assert made.spec == plain.spec
    assert_alike(made.embed(pictures(5)), plain.embed(pictures(5)), least=0.99)
    made.close()


def test_what_cannot_be_compiled_runs_as_it_is(tiny_folder, monkeypatch, caplog):
    def broken(_network: Any) -> int:
        raise RuntimeError("no C compiler here")

    monkeypatch.setattr("worker.backbones.accelerated.compile_blocks", broken)
    made = load_overlapped(
        str(folder := tiny_folder("dinov2")),
        device="cpu",
        dtype="float32",
        threads=0,
        backbones_dir=None,
        acceleration=Acceleration(2, 0.001, compiled=True),
    )
    assert_alike(made.embed(pictures(3)), load_backbone(folder).embed(pictures(3)))
    assert "is not compiled: no C compiler here" in caplog.text
    made.close()


def test_a_device_is_given_out_once(tmp_path):
    first, second = (claim_device(tmp_path, "gpu 0", 0.4) for _ in range(2))
    with pytest.raises(DeviceFailed, match=r"RIS_DEVICE_SHARE") as raised:
        claim_device(tmp_path, "gpu 0", 0.4)
    assert raised.value.retryable and f"process {os.getpid()}: 0.8" in str(raised.value)
    claim_device(tmp_path, "gpu 1", 1.0).release()
    first.release()
    claim_device(tmp_path, "gpu 0", 0.4).release()
    second.release()


def test_a_dead_process_gives_its_share_back(tmp_path):
    code = (
        "import sys, time; from pathlib import Path\n"
        "from worker.backbones.device_claim import claim_device\n"
        "claim = claim_device(Path(sys.argv[1]), 'gpu 0', 1.0); print('has it', flush=True)\n"
        "time.sleep(600)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "has it\n"
        with pytest.raises(DeviceFailed, match=f"process {holder.pid}: 1"):
            claim_device(tmp_path, "gpu 0", 0.2)
    finally:
        holder.kill()
        holder.wait()
    claim_device(tmp_path, "gpu 0", 1.0).release()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_gpu_gives_the_descriptors_of_the_cpu(tiny_folder, overlapped, noise_pictures, dtype):
    folder = tiny_folder("ijepa")
    on_gpu: Any = load_backbone(folder, device="cuda", dtype=dtype)
    expected = load_backbone(folder).embed([*noise_pictures, *pictures(6)])
    embedder = overlapped(on_gpu, Batching(4, buckets=bucket_sizes(4)))
    assert_alike(embedder.embed([*noise_pictures, *pictures(6)]), expected, least=0.99)
    stored = embedder.embed_stored(pictures(6), "int8")
    assert stored.patches_ncd.dtype == np.int8
