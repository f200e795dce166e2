"""Devices that backbones run on: which one, whether it works, and what is known about it.

Importing this loads no torch.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from worker.errors import InputInvalid

if TYPE_CHECKING:
    import torch

log = logging.getLogger("ris.embedder")

_DRIVER = Path("/proc/driver/nvidia/version")


def usable_device(device: str) -> str:
    """The device itself; for ``auto`` the CUDA device where one works, else the CPU. Raises
    ``InputInvalid`` for a device that is not usable here."""
    if device != "auto":
        torch_device_of(device)
        return device
    import torch

    if not torch.cuda.is_available():
        log.info("no CUDA device is usable: embedding on the CPU")
        return "cpu"
    try:
        torch_device_of("cuda")
    except InputInvalid as error:
        log.warning("embedding on the CPU: %s", error)
        return "cpu"
    return "cuda"


def torch_device_of(device: str) -> torch.device:
    """torch's device of that name, tried out. Raises ``InputInvalid`` where it does not work."""
    import torch

    try:
        chosen = torch.device(device)
        torch.ones(2, device=chosen).add_(1)  # a kernel, which a build for other chips lacks
        if chosen.type == "cuda":
            torch.cuda.synchronize(chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        first_line = str(error).splitlines()[0]
        raise InputInvalid(
            f"Device {device!r} is not usable here ({first_line}); use cpu, or cuda with a CUDA "
            "build of torch and a GPU."
        ) from error
    if chosen.type == "meta":
        raise InputInvalid("Device 'meta' holds no numbers; use cpu or cuda.")
    return chosen


def describe_device(device: str) -> tuple[bool, str]:
    """Whether backbones can run on ``device`` here, and what was found, in words."""
    found = "; ".join([*_driver(), *_cuda_devices()])
    try:
        usable_device(device)
    except InputInvalid as error:
        return False, f"{error} ({found})"
    return True, found


def describe_torch() -> str:
    """What this torch was built for."""
    import torch

    if torch.version.cuda is None:
        return "built for the CPU only"
    return f"built for CUDA {torch.version.cuda}: {' '.join(torch.cuda.get_arch_list())}"


def _driver() -> list[str]:
    """The NVIDIA driver that the kernel has loaded."""
    try:
        line = _DRIVER.read_text().splitlines()[0]
    except (OSError, IndexError):
        return []
    return [line.removeprefix("NVRM version:").strip()]


def _cuda_devices() -> list[str]:
    import torch

    if not torch.cuda.is_available():
        return ["no CUDA device"]
    told = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        try:
            free_bytes, total_bytes = torch.cuda.mem_get_info(index)
            memory = f"{free_bytes / 1e9:.0f} of {total_bytes / 1e9:.0f} GB free"
        except RuntimeError as error:  # of a device that does not answer
            memory = str(error).splitlines()[0]
        told.append(
            f"cuda:{index} {properties.name}, sm_{properties.major}{properties.minor}, {memory}"
        )
    return told
