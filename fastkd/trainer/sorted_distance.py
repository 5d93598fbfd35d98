"""ULD's distance between distributions whose columns mean different tokens (Boizard et al. 2024, "Towards
Cross-Tokenizer Distillation: the Universal Logit Distillation Loss for LLMs").

With p_(1) >= p_(2) >= ... the sorted probabilities of one side, q_(1) >= q_(2) >= ... those of the other, and
the shorter list filled up with zeros,

    R(p, q) = sum over i of |p_(i) - q_(i)|

It is the cost of the cheapest matching of the columns. The gradient of R with respect to a logit of q at
temperature T is q_j (s_j - sum over i of q_i s_i) / T, with s_j the sign of q_(i) - p_(i) at the rank i of j,
and s_j = 0 for a column that is not compared.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Probabilities of both sides that are sorted at a time: a sort needs several times their memory.
CHUNK = 1 << 22


def sorted_distance(
    student: Tensor,
    teacher: Tensor,
    temperature: float,
    own: Tensor | None = None,
    given: Tensor | None = None,
) -> Tensor:
    """``(n,)``, the distance R of each row, as float32, or float64 where the student's logits are.

    The teacher gets no gradient.

    Args:
        student, teacher: ``(n, V)`` logits of all tokens, with a V for each side.
        temperature: of both distributions.
        own, given: the columns of either side that are compared, int64; None for all. The others are part of
            the distributions all the same.
    """
    found: Tensor = _SortedDistance.apply(student, teacher, temperature, own, given)
    return found


class _SortedDistance(torch.autograd.Function):
    """Works out the gradient with the distance, so that no sorted row has to be kept."""

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        teacher: Tensor,
        temperature: float,
        own: Tensor | None,
        given: Tensor | None,
    ) -> Tensor:
        dtype = torch.float64 if student.dtype == torch.float64 else torch.float32
        distances = student.new_zeros(len(student), dtype=dtype)
        gradient = torch.empty_like(student, dtype=dtype) if ctx.needs_input_grad[0] else None
        step = max(1, CHUNK // max(1, student.shape[-1] + teacher.shape[-1]))
        for start in range(0, len(student), step):
            rows = slice(start, start + step)
            q, p = (torch.softmax(side[rows].to(dtype) / temperature, -1) for side in (student, teacher))
            mine, order = (q if own is None else q[:, own]).sort(-1, descending=True)
            theirs = (p if given is None else p[:, given]).sort(-1, descending=True).values
            width = max(mine.shape[-1], theirs.shape[-1])
            apart = _filled_up(mine, width) - _filled_up(theirs, width)
            distances[rows] = apart.abs().sum(-1)
            if gradient is not None:
                columns = order if own is None else own[order]
                signs = torch.zeros_like(q).scatter_(-1, columns, apart.sign()[:, : mine.shape[-1]])
                gradient[rows] = q * (signs - (q * signs).sum(-1, keepdim=True)) / temperature
        ctx.dtype = student.dtype
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return distances

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> Any:
        (gradient,) = ctx.saved_tensors
        return (gradient * upstream[:, None]).to(ctx.dtype), None, None, None, None


def _filled_up(sorted_rows: Tensor, width: int) -> Tensor:
    return F.pad(sorted_rows, (0, width - sorted_rows.shape[-1]))
