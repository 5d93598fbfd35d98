"""The arithmetic of one row, as plain numbers that every backend understands."""

from __future__ import annotations

from dataclasses import dataclass

DIVERGENCES = ("forward_kl", "reverse_kl", "jsd")


@dataclass(frozen=True)
class LossSpec:
    """``L = kd_weight * D(p, q) + ce_weight * CE + z_loss * logsumexp(s)**2`` for one token.

    ``p = softmax(t / teacher_temperature)`` and ``q = softmax(s / temperature)`` over the first
    ``vocab_size`` columns; CE and the z-loss are at temperature 1.
    """

    divergence: str
    beta: float
    temperature: float
    teacher_temperature: float
    kd_weight: float
    ce_weight: float
    label_smoothing: float
    z_loss: float
    ignore_index: int
    vocab_size: int
