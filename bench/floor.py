"""The least a loss can cost on this machine, measured in the same run."""

from __future__ import annotations

import torch

from bench.cases import Case, Problem
from bench.timing import median_seconds


def copy_bandwidth(device: str, size: int) -> float:
    """Bytes per second, read and written, of copying ``size`` bytes into memory that is already mapped."""
    source = torch.ones(size // 4, device=device)
    target = torch.zeros_like(source)
    return 2 * size / median_seconds(lambda: target.copy_(source), device)


def dense_bytes(case: Case) -> int:
    """One read of each side's logits and one write of the gradient."""
    return 3 * case.logits_bytes


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
