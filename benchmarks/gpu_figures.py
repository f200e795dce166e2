"""How figures of a device are taken and told. Needs torch alone."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from benchmarks.machine import machine


@dataclass(frozen=True, slots=True)
class Bench:
    """Where figures are taken, and until when new ones are begun (by ``time.perf_counter``)."""

    device: torch.device
    until_s: float
    failed: list[str] = field(default_factory=list)

    @property
    def gpu(self) -> bool:
        """Whether this is about a GPU at all."""
        return self.device.type == "cuda"

    @property
    def left_s(self) -> float:
        """Seconds until nothing new is begun."""
        return self.until_s - time.perf_counter()

    def wait(self) -> None:
        """For what the device was given."""
        if self.gpu:
            torch.cuda.synchronize(self.device)

    def seconds(self, run: Callable[[], object], repeats: int = 7) -> float:
        """Median time of one call, the device's work included, after two that do not count."""
        repeats = repeats if self.gpu else min(repeats, 3)
        run()
        run()
        times_s = []
        for _ in range(repeats):
            self.wait()
            started_s = time.perf_counter()
            run()
            self.wait()
            times_s.append(time.perf_counter() - started_s)
        return float(np.median(times_s))

    def free_bytes(self) -> int:
        """Memory for what is measured: most of what is free on a GPU, little on a CPU."""
        if not self.gpu:
            return 256 << 20
        torch.cuda.empty_cache()
        return int(0.8 * torch.cuda.mem_get_info(self.device)[0])

    def tell(
        self,
        name: str,
        value: float,
        unit: str,
        *,
        peer: str = "",
        peer_value: float | None = None,
        ratio: float | None = None,
        goal: str = "",
        **more: object,
    ) -> None:
        """One figure, one line. ``ratio``: as ``goal`` means it."""
        told: dict[str, Any] = {"name": name, "value": _short(value), "unit": unit}
        if peer:
            told |= {"peer": peer, "peer_value": None if peer_value is None else _short(peer_value)}
        if ratio is not None:
            told["ratio"] = _short(ratio)
        if goal:
            told["goal"] = goal
        self._print(told | more)

    def leave_out(self, name: str, why: str) -> None:
        """A figure that is not taken, and why."""
        self._print({"name": name, "value": None, "left_out": why})

    def attempt(self, name: str, take: Callable[[], None]) -> None:
        """Take figures; what fails costs no others, and the program's exit status in the end."""
        try:
            take()
        except Exception as error:
            self.failed.append(name)
            self.leave_out(name, f"FAILED: {type(error).__name__}: {error}"[:400])
        if self.gpu:
            torch.cuda.empty_cache()

    def _print(self, told: dict[str, Any]) -> None:
        if self.gpu:
            told["machine"] = f"{torch.cuda.get_device_name(self.device)}; {machine()}"
        else:
            told["machine"] = machine()
            told["note"] = "; ".join(["a miniature on the CPU: no GPU figure", *_given(told)])
        print(json.dumps(told), flush=True)


def _given(told: dict[str, Any]) -> list[str]:
    return [told["note"]] if "note" in told else []


def _short(value: float) -> float:
    return float(f"{value:.4g}")
