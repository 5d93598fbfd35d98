"""Arithmetic that the formulas share; it keeps the digits of small differences."""

from __future__ import annotations

import torch
from torch import Tensor


def times(weight: Tensor, x: Tensor) -> Tensor:
    """``weight * x`` with ``0 * anything = 0``, the convention of every divergence."""
    return torch.where(weight == 0, torch.zeros_like(x), weight * x)


def log_mixture_ratio(share: float, log_ratio: Tensor) -> Tensor:
    """``log((1 - share) + share * exp(log_ratio))``: a mixture over one of its components."""

    def from_larger(share: float, log_ratio: Tensor) -> Tensor:
        # For log_ratio <= 0. log1p of the mixture's difference from 1 suits small ratios, the logarithm of
        # the mixture itself all others: each form keeps digits that the other would round away.
        near = torch.log1p(share * torch.expm1(log_ratio))
        return torch.where(log_ratio > -0.7, near, torch.log((1 - share) + share * torch.exp(log_ratio)))

    # exp(log_ratio) * (share + (1 - share) * exp(-log_ratio)) for ratios above 1
    large = log_ratio + from_larger(1 - share, -log_ratio.clamp(min=0))
    return torch.where(log_ratio > 0, large, from_larger(share, log_ratio.clamp(max=0)))


def difference(p: Tensor, q: Tensor, log_ratio: Tensor) -> Tensor:
    """``q - p``, to full relative accuracy also where the two are nearly equal."""
    return torch.where(log_ratio > 0, p * torch.expm1(-log_ratio), -q * torch.expm1(log_ratio))
