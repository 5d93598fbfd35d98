"""The cost of a run: seconds per optimizer step, and peak memory."""

from __future__ import annotations

import contextlib
import gc
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from fastkd.backends.memory import release_memory, trim


class StepClock(TrainerCallback):
    """Times each optimizer step: forward, backward and update, without logging, evaluation and saving."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self._began = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        reset_peak_memory()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps.append(time.perf_counter() - self._began)

    def report(self) -> dict[str, float | None]:
        """Median seconds per step and the peak memory since training began, in MB."""
        seconds = statistics.median(self.steps) if self.steps else None
        return {"seconds_per_step": seconds, "peak_memory_mb": peak_memory_mb()}


def reset_peak_memory() -> None:
    """Reset the peak, if the system allows it (CUDA and Linux).

    Memory that was freed before goes back to the system first. That of an earlier run in the same process,
    with another seed for example, would count as this one's.
    """
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return
    gc.collect()
    release_memory()
    trim()
    with contextlib.suppress(OSError):  # elsewhere the peak is that of the whole process so far
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mb() -> float:
    """Peak memory in MB: that of the GPU's allocator if there is a GPU, else that of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024
    except (OSError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (2**20 if sys.platform == "darwin" else 2**10)
