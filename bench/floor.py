"""The least a loss can cost on this machine, measured in the same run."""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from bench.cases import Problem
from bench.timing import median_seconds


def copy_bandwidth(device: str, size: int) -> float:
    """Bytes per second, read and written, of copying ``size`` bytes into memory that is already mapped.

    On a CPU the faster of two ways: ``Tensor.copy_``, and the C library's ``memcpy`` on as many threads,
    which writes past the caches.
    """
    source = torch.ones(size // 4, device=device)
    target = torch.zeros_like(source)
    seconds = median_seconds(lambda: target.copy_(source), device)
    if device == "cpu":
        seconds = min(seconds, _memcpy_seconds(target, source))
    return 2 * size / seconds


def memory_seconds(problem: Problem) -> float:
    """One read of each side's logits and one write of the gradient, at the speed of a copy."""
    case = problem.case
    return 3 * case.logits_bytes / copy_bandwidth(case.device, case.logits_bytes)


def _memcpy_seconds(target: Tensor, source: Tensor) -> float:
    memcpy = ctypes.CDLL(None).memcpy  # lets other threads run while it works
    memcpy.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
    threads = torch.get_num_threads()
    slices = list(zip(target.chunk(threads), source.chunk(threads), strict=True))
    with ThreadPoolExecutor(threads) as pool:

        def copy() -> None:
            parts = [pool.submit(memcpy, t.data_ptr(), s.data_ptr(), 4 * s.numel()) for t, s in slices]
            for part in parts:
                part.result()

        return median_seconds(copy, "cpu")


def gemm_seconds(problem: Problem) -> float:
    """The four matrix products that no loss over hidden states can do without, into memory already mapped."""
    (hs, ws), (ht, wt) = [[x.detach() for x in side] for side in (problem.student, problem.teacher)]
    logits = torch.empty(problem.case.tokens, problem.case.vocab, dtype=hs.dtype, device=hs.device)
    grad_hidden, grad_weight = torch.empty_like(hs), torch.empty_like(ws)

    def products() -> None:
        torch.mm(ht, wt.T, out=logits)
        torch.mm(hs, ws.T, out=logits)
        torch.mm(logits, ws, out=grad_hidden)
        torch.mm(logits.T, hs, out=grad_weight)

    return median_seconds(products, problem.case.device)
