"""Compiled vision transformers: one block is compiled, and serves all blocks, which are alike."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from worker.errors import InputInvalid

CompileMode = Literal["default", "max-autotune-no-cudagraphs"]
_MOST_SIZES = 64
"""Versions of one block: one per batch size, and of every network of this process."""


def compile_blocks(
    network: nn.Module, mode: CompileMode = "default", backend: str = "inductor"
) -> int:
    """Have every block of a transformer compiled at its first pass of each batch size; their
    number. The same numbers up to rounding.

    A block, not the whole network: that takes a compiler seconds instead of minutes. Raises
    ``InputInvalid`` for a network that is no stack of blocks.
    """
    stacks = [part for part in network.modules() if isinstance(part, nn.ModuleList)]
    blocks: Any = max(stacks, key=len, default=nn.ModuleList())
    if len(blocks) == 0:
        raise InputInvalid(f"{type(network).__name__} is no stack of blocks: it is not compiled")
    torch._dynamo.config.recompile_limit = _MOST_SIZES
    for block in blocks:
        block.compile(dynamic=False, backend=backend, mode=mode if backend == "inductor" else None)
    return len(blocks)
