"""Measures this machine's speed in a second or two, and estimates the time of a step from it.

This is for steps that are too large to be tried (see ``trial.py``): its range is wide.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from fastkd.runs.estimate.step import Step

SECONDS = 0.4
# Limits of the range, as factors of the sum of arithmetic, memory traffic and calls: kernels overlap on some
# machines and wait on others.
FASTER, SLOWER = 0.5, 2.5


@dataclass(frozen=True)
class Machine:
    """The speed of this machine.

    Attributes:
        flops: floating-point operations per second in matrix products.
        bandwidth: bytes per second of a copy, where bytes read and bytes written both count.
        call: seconds of an operator call with almost no work.
    """

    flops: float
    bandwidth: float
    call: float


def measure(device: torch.device, dtype: torch.dtype, rows: int, width: int) -> Machine:
    """Measure products of ``(rows, width)`` with ``(width, 4 * width)``, copies, and small calls."""
    rows, width = min(max(rows, 1), 4096), min(max(width, 1), 4096)
    a = torch.randn(rows, width, device=device, dtype=dtype)
    b = torch.randn(width, 4 * width, device=device, dtype=dtype)
    big = torch.empty(16 * 2**20, device=device)
    into = torch.empty_like(big)
    small = torch.ones(8, device=device, requires_grad=True)
    return Machine(
        2 * rows * width * 4 * width / _seconds(lambda: a @ b, device),
        2 * big.numel() * big.element_size() / _seconds(lambda: into.copy_(big), device),
        _seconds(lambda: small * 2.0, device),
    )


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call: the least of several rounds, each a mean over its calls."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    run()
    wait()
    best, ends = float("inf"), time.perf_counter() + SECONDS
    count = 1
    while time.perf_counter() < ends:
        began = time.perf_counter()
        for _ in range(count):
            run()
        wait()
        took = time.perf_counter() - began
        best = min(best, took / count)
        if took < SECONDS / 20:
            count *= 2
    return best


def seconds_per_step(step: Step, micro_batches: int, machine: Machine) -> tuple[float, float]:
    """The lowest and highest estimate for one optimizer step.

    The sum of arithmetic, memory traffic and calls is multiplied by ``FASTER`` for the lowest and by
    ``SLOWER`` for the highest.
    """
    # Seven float32 per parameter: weights and two moments are read and written, gradients are read.
    update = 7 * 4 * step.trained / machine.bandwidth
    micro = step.flops / machine.flops + 3 * step.written / machine.bandwidth + step.operators * machine.call
    sum_of_all = micro_batches * micro + update
    return FASTER * sum_of_all, SLOWER * sum_of_all
