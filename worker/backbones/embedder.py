"""Batched embedding on top of any backbone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from worker.backbones.base import Backbone
from worker.core.types import Descriptors, ImageArray
from worker.errors import InputInvalid


def embed_batched(backbone: Backbone, imgs_hwc: Sequence[ImageArray], batch: int) -> Descriptors:
    """``backbone.embed`` in calls of at most ``batch`` pictures, joined in order.

    Raises what ``embed`` raises, and ``InputInvalid`` for a batch below 1.
    """
    if batch < 1:
        raise InputInvalid(f"Batch is {batch}; it must be at least 1.")
    starts = range(0, max(1, len(imgs_hwc)), batch)  # an empty list still reaches embed's check
    parts = [backbone.embed(imgs_hwc[start : start + batch]) for start in starts]
    return Descriptors(
        np.concatenate([part.global_nd for part in parts]),
        np.concatenate([part.patches_ncd for part in parts]),
    )


def set_threads(threads: int) -> None:
    """Let torch use this many threads in this process; 0 keeps torch's own choice."""
    if threads < 0:
        raise InputInvalid(f"Threads is {threads}; it must be 0 (all cores) or more.")
    if threads:
        import torch

        torch.set_num_threads(threads)
