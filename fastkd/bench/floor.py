"""Measures the floor: the lowest time that a case can take on this device, in the same run."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastkd.bench.cases import Problem
from fastkd.bench.device import Device, time_calls

SECONDS = 0.2


@dataclass(frozen=True)
class Floor:
    """``seconds``, the lowest time of the case; ``bandwidth`` of a copy in bytes/s, read and written."""

    seconds: float
    bandwidth: float | None = None


def measured(device: Device, problems: Sequence[Problem]) -> Floor:
    """Over logits, the time to copy the bytes that must move; behind heads, that of the matrix products."""
    case = problems[0].case
    if case.linear:
        return Floor(_median(device, [products(p) for p in problems]))
    bandwidth = copy_bandwidth(device, [p.teacher[0] for p in problems])
    return Floor(case.least_bytes / bandwidth, bandwidth)


def copy_bandwidth(device: Device, sources: Sequence[Tensor]) -> float:
    """Bytes per second, read and written, of copying a tensor into memory that is already mapped.

    On a CPU the faster of two copies counts: ``Tensor.copy_``, and numpy's copy on as many threads, which is
    the C library's ``memcpy`` and writes past the caches.
    """
    # Two targets even for one source, since a cache would speed up the written half most.
    pairs = [(torch.zeros_like(source), source) for source in (*sources, *sources[:1])]
    seconds = _median(device, [_copy(*pair) for pair in pairs])
    if device.kind == "cpu":
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            seconds = min(seconds, _median(device, [_threaded_copy(pool, *pair) for pair in pairs]))
    return 2 * sources[0].nbytes / seconds


def products(problem: Problem) -> Callable[[], None]:
    """The matrix products that every loss over hidden states needs, into memory that is already mapped.

    Four with a teacher: two heads and two gradients. The cross-entropy alone has no product for the teacher's
    head, and a case without a backward none for the gradients.
    """
    case = problem.case
    (hs, ws), (ht, wt) = [[x.detach() for x in side] for side in (problem.student, problem.teacher)]
    logits = torch.empty(case.tokens, case.vocab, dtype=hs.dtype, device=hs.device)
    grad_hidden, grad_weight = torch.empty_like(hs), torch.empty_like(ws)

    def run() -> None:
        if case.kd_ratio > 0:
            torch.mm(ht, wt.T, out=logits)
        torch.mm(hs, ws.T, out=logits)
        if case.backward:
            torch.mm(logits, ws, out=grad_hidden)
            torch.mm(logits.T, hs, out=grad_weight)

    return run


def _copy(target: Tensor, source: Tensor) -> Callable[[], object]:
    return lambda: target.copy_(source)


def _threaded_copy(pool: ThreadPoolExecutor, target: Tensor, source: Tensor) -> Callable[[], object]:
    threads = torch.get_num_threads()
    to, of = (x.view(-1).view(torch.uint8).numpy() for x in (target, source))
    slices = list(zip(np.array_split(to, threads), np.array_split(of, threads), strict=True))

    def copy() -> None:
        for part in [pool.submit(np.copyto, t, s) for t, s in slices]:
            part.result()

    return copy


def _median(device: Device, calls: Sequence[Callable[[], object]]) -> float:
    return statistics.median(time_calls(device, calls, SECONDS))
