"""The arithmetic of one row, as plain numbers that every backend understands."""

from __future__ import annotations

from dataclasses import dataclass

DIVERGENCES = (
    "forward_kl",
    "reverse_kl",
    "jeffreys",
    "jsd",
    "skew_forward_kl",
    "skew_reverse_kl",
    "tvd",
    "hellinger",
    "alpha",
    "renyi",
    "alpha_beta",
    "decoupled",
    "log_acceptance",
    "kl_tvd",
)

# The columns of a row's metrics.
METRICS = ("kd", "ce", "student_entropy", "teacher_entropy", "agreement")


@dataclass(frozen=True)
class LossSpec:
    """``L = kd_weight * D(p, q) + ce_weight * CE + z_loss * logsumexp(s)**2`` for one token.

    ``p = softmax(t / teacher_temperature)`` and ``q = softmax(s / temperature)`` over the first
    ``vocab_size`` columns; CE and the z-loss are at temperature 1. Where ``kd_weight`` is 0 the teacher is
    not read. ``kd_metric`` is the factor of ``D`` in the metrics.
    """

    divergence: str
    alpha: float
    beta: float
    temperature: float
    teacher_temperature: float
    kd_weight: float
    kd_metric: float
    ce_weight: float
    label_smoothing: float
    z_loss: float
    ignore_index: int
    vocab_size: int
