"""From a reduction to one weight per row, so that kernels only ever see rows."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastkd.losses.checks import REDUCTIONS, number, one_of
from fastkd.spec import LossSpec


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
) -> Tensor:
    """``(tokens,)`` weights such that the sum of ``weight * L`` is the reduced loss.

    Invalid tokens weigh 0. Nothing here waits for the device.
    """
    tokens = student.shape[:-1].numel()
    if token_weights is None:
        scale = torch.ones(tokens, dtype=dtype, device=student.device)
    else:
        scale = token_weights.detach().reshape(tokens).to(dtype)
    if labels is not None:
        scale = torch.where(labels.reshape(tokens) != ignore_index, scale, 0.0)
    if reduction == "batchmean":
        return scale / (student.shape[0] if student.dim() > 1 else 1)
    if reduction == "mean":
        total = scale.sum() if num_items is None else torch.as_tensor(num_items).to(dtype)
        # Nothing to average is a loss of 0, not 0 / 0. (num_items may be a scalar on the CPU for logits on a
        # GPU: as a factor it costs no copy.)
        return scale * torch.where(total == 0, 0.0, 1.0 / total)
    return scale


def valid(labels: Tensor | None, ignore_index: int, token_weights: Tensor | None, student: Tensor) -> Tensor:
    """``(tokens,)`` bool: the tokens that the metrics are means over."""
    tokens = student.shape[:-1].numel()
    counted = torch.ones(tokens, dtype=torch.bool, device=student.device)
    if labels is not None:
        counted = labels.reshape(tokens) != ignore_index
    if token_weights is not None:
        counted = counted & (token_weights.detach().reshape(tokens) != 0)
    return counted


def _largest_gradient(spec: LossSpec) -> float:
    """About the largest element that a divergence's gradient has for models that are not far apart."""
    a, b = spec.alpha, spec.beta
    weights: dict[str, float] = {
        "alpha": max(1 / abs(a or 1), 1 / abs(1 - a or 1)),
        "renyi": max(1.0, abs(a / (1 - a or 1))),
        "alpha_beta": max(1 / abs(a or 1), 1 / abs(b or 1)),
        "decoupled": 1 + b,
        "jeffreys": 2.0,
    }
    return weights.get(spec.divergence, 1.0)


def _unbounded(spec: LossSpec) -> bool:
    """Whether a power of a probability may be negative, and its gradient as large as that makes it."""
    a, b = spec.alpha, spec.beta
    if spec.divergence in ("alpha", "renyi"):
        return not 0 < a < 1
    return spec.divergence == "alpha_beta" and min(a, b) < 0


def held_scale(scale: Tensor, spec: LossSpec, *dtypes: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
    """The weights of the stored gradient, and the factor that turns it into the gradient.

    float16 keeps few digits below 6e-5 and none below 6e-8, where a probability over 100,000 words divided
    by a batch of tokens lies. So a float16 gradient is held near 1 and meets its true weight only in the
    backward, together with the upstream gradient (a GradScaler's, say). Other dtypes need no such care:
    None, None.
    """
    if torch.float16 not in dtypes or scale.numel() == 0:
        return None, None
    by_kd = spec.kd_weight / min(spec.temperature, spec.teacher_temperature) * _largest_gradient(spec)
    largest = by_kd + spec.ce_weight + 40 * spec.z_loss
    lift = 1.0 if _unbounded(spec) else 2.0 ** (10 - math.ceil(math.log2(max(largest, 1.0))))
    top = scale.abs().amax()
    top = torch.where(top == 0, 1.0, top)
    return scale / top * lift, top / lift
