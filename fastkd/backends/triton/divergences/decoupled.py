"""Decoupled distillation: the label against all other classes, and those among themselves."""

from __future__ import annotations

import triton
import triton.language as tl

from fastkd.backends.triton.arithmetic import expm1, times
from fastkd.backends.triton.divergences.arithmetic import over_teacher
from fastkd.backends.triton.divergences.base import Formulas
from fastkd.backends.triton.divergences.kl import FORWARD_STREAM, forward_kl_value
from fastkd.divergences import DIVERGENCES


@triton.jit
def _two_ways(label):
    """``(q - p of the label, dKL/d(t/T_t) of the label, KL)`` of the two-way split."""
    p, q, d = label.teacher, label.student, label.log_odds_ratio
    gap = tl.where(d > 0.0, p.label * q.others * expm1(0.0 - d), 0.0 - q.label * p.others * expm1(d))
    by_teacher = times(p.label, times(p.others, d))
    kl = times(p.label, p.log_label - q.log_label) + times(p.others, p.log_others - q.log_others)
    return gap, by_teacher, kl


@triton.jit
def _value(statistics, label, sum_0, sum_1, row, scales):
    forward = forward_kl_value(statistics, scales)
    # If no other class has probability, there is nothing to compare.
    others = tl.where(statistics.z_t > 0.0, forward, 0.0)
    gap, by_teacher, target = _two_ways(label)
    return target + scales.b * others, (gap, by_teacher, others)


@triton.jit
def _gradients(e, constants, row, scales):
    by_teacher = times(e.et, scales.b * (e.log_ratio - constants[2]) - constants[1])
    return scales.b * e.gap - constants[0] * (e.es * row.ratio), by_teacher


DECOUPLED = Formulas(
    DIVERGENCES["decoupled"],
    streams=FORWARD_STREAM,
    evaluate=_value,
    gradients=_gradients,
    gradient_units=over_teacher,
)
