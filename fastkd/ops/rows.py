"""Views tensors of any leading shape as rows, without a copy where strides allow."""

from __future__ import annotations

import torch
from torch import Tensor


def as_rows(x: Tensor) -> Tensor:
    """View ``(..., V)`` as ``(outer, inner, V)`` with any strides.

    Two leading levels cover the common views that do not flatten, such as ``logits[:, :-1]``.
    Only a leading shape that cannot be folded into two levels is copied.
    """
    if x.dim() == 1:
        return x.unsqueeze(0).unsqueeze(0)
    if x.dim() == 2:
        return x.unsqueeze(0)
    if x.dim() == 3:
        return x
    for split in range(1, x.dim()):
        try:
            return x.view(x.shape[:split].numel(), x.shape[split:-1].numel(), x.shape[-1])
        except RuntimeError:
            continue
    return x.reshape(1, x.shape[:-1].numel(), x.shape[-1])


def same_rows(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Row views of two tensors of equal leading shape, with equal ``outer`` and ``inner``."""
    s, t = as_rows(student), as_rows(teacher)
    if s.shape[:2] == t.shape[:2]:
        return s, t
    # The two fold differently, so both are flattened, which copies what strides do not allow to view.
    rows = student.shape[:-1].numel()
    return student.reshape(1, rows, student.shape[-1]), teacher.reshape(1, rows, teacher.shape[-1])


def wide(*tensors: Tensor | None) -> torch.dtype:
    """The dtype of the arithmetic: float64 if any input is float64, else float32."""
    double = any(x is not None and x.dtype == torch.float64 for x in tensors)
    return torch.float64 if double else torch.float32
