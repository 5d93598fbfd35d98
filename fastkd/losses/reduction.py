"""Turns a reduction into one weight per row, so that kernels only see rows."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastkd.backends import registry
from fastkd.losses.checks import REDUCTIONS, number, one_of


def check(reduction: str, num_items: int | Tensor | None) -> None:
    one_of("reduction", reduction, REDUCTIONS)
    if num_items is None:
        return
    if reduction != "mean":
        raise ValueError(
            f"num_items replaces the denominator of reduction='mean', got reduction={reduction!r}"
        )
    if isinstance(num_items, Tensor):
        if num_items.dim() != 0:
            raise ValueError(f"num_items must be an int or a 0-d tensor, got shape {tuple(num_items.shape)}")
    else:
        number("num_items", num_items, 0, math.inf)


def row_scale(
    reduction: str,
    labels: Tensor | None,
    ignore_index: int,
    token_weights: Tensor | None,
    num_items: int | Tensor | None,
    student: Tensor,
    dtype: torch.dtype,
    backend: str | None,
) -> Tensor:
    """``(tokens,)`` weights such that the sum of ``weight * L`` is the reduced loss.

    Invalid tokens get weight 0. Nothing here makes the host wait for the device.
    """
    tokens = math.prod(student.shape[:-1])
    weights = None if token_weights is None else token_weights.detach()
    divisor = _divisor(reduction, labels, weights, num_items, student)
    found = registry.row_weights(
        backend, tokens, student.device, labels, ignore_index, weights, divisor, dtype
    )
    if found is not None:
        return found
    if weights is not None:
        scale = weights.reshape(tokens).to(dtype)
        if labels is not None:
            scale = torch.where(labels.reshape(tokens) != ignore_index, scale, 0.0)
    elif labels is not None:
        scale = ((labels if labels.dim() == 1 else labels.reshape(tokens)) != ignore_index).to(dtype)
    else:
        scale = torch.ones(tokens, dtype=dtype, device=student.device)
    if divisor is None or isinstance(divisor, Tensor):
        # num_items may be on the CPU while logits are on a GPU: a 0-d factor needs no copy.
        total = scale.sum() if divisor is None else divisor.to(dtype)
        return scale * torch.where(total == 0, 0.0, 1.0 / total)
    return scale / divisor if divisor != 0 else torch.zeros_like(scale)


def _divisor(
    reduction: str,
    labels: Tensor | None,
    weights: Tensor | None,
    num_items: int | Tensor | None,
    student: Tensor,
) -> int | Tensor | None:
    """The number by which the sum of the weighted losses is divided; None for the sum of the weights.

    Where it is 0 there is nothing to average, and the loss is 0, not 0 / 0.
    """
    if reduction == "batchmean":
        return student.shape[0] if student.dim() > 1 else 1
    if reduction != "mean":
        return 1
    if num_items is not None or labels is not None or weights is not None:
        return num_items
    return math.prod(student.shape[:-1])


def totals(
    row_loss: Tensor | None, metrics: Tensor | None, loss_scale: Tensor, backend: str | None
) -> tuple[Tensor | None, Tensor | None]:
    """The sum of a call's losses, and the means of its metrics.

    Args:
        row_loss: ``(rows,)``, with their weights; or None.
        metrics: ``(rows, len(METRICS))``, 0 in rows of weight 0; or None.
        loss_scale: ``(rows,)``, the weights.

    Returns:
        The sum, and ``(len(METRICS) + 1,)``: the means over the rows whose weight is not 0, and the number of
        these rows. None for what was not given.
    """
    if row_loss is None and metrics is None:
        return None, None
    found = registry.totals(backend, row_loss, metrics, loss_scale)
    if found is not None:
        return found
    loss = None if row_loss is None else row_loss.sum()
    if metrics is None:
        return loss, None
    count = (loss_scale != 0).sum(0, keepdim=True, dtype=metrics.dtype)
    return loss, torch.cat([metrics.sum(0) / count.clamp(min=1), count])
