"""A distribution as two classes, the label and all others."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from fastkd.backends.triton.arithmetic import expm1, fma, log1p, log_quotient, times
from fastkd.backends.triton.tiles import offset_between


class Split(NamedTuple):
    label: Any  # probabilities, each with all its digits
    others: Any
    log_label: Any
    log_others: Any


class Label(NamedTuple):
    """The label's two-way split on both sides."""

    student: Any
    teacher: Any
    log_odds_ratio: Any  # the teacher's log-odds minus the student's


@triton.jit
def split(odds):
    """The ``Split`` with these log-odds of the label to all others."""
    rest = log1p(tl.exp(0.0 - tl.abs(odds)))
    log_label = tl.where(odds < 0.0, odds, 0.0) - rest
    log_others = tl.where(odds < 0.0, 0.0, 0.0 - odds) - rest
    return Split(tl.exp(log_label), tl.exp(log_others), log_label, log_others)


@triton.jit
def label_splits(found, label_s, label_t, scales):
    """The ``Label``, from the label's logits and the ``Statistics`` of all others."""
    shift_s, shift_t = found.shift_s, found.shift_t
    odds_s = (label_s - shift_s) * scales.to_nats - tl.log(found.z_s)
    odds_t = (label_t - shift_t) * (scales.to_nats * scales.temperatures) - tl.log(found.z_t)
    relative = fma(label_t, scales.temperatures, 0.0 - label_s) - offset_between(shift_s, shift_t, scales)
    ratio = fma(relative, scales.to_nats, log_quotient(found.z_s, found.z_t))
    # Both sides are equally certain: the ratio is 0, but the difference of infinities would be NaN.
    certain = (odds_s == odds_t) & (tl.abs(odds_s) == float("inf"))
    return Label(split(odds_s), split(odds_t), tl.where(certain, 0.0, ratio))


@triton.jit
def two_ways(label):
    """``(q - p of the label, dKL/d(t/T_t) of the label, KL)`` of the two-way split."""
    p, q, d = label.teacher, label.student, label.log_odds_ratio
    gap = tl.where(d > 0.0, p.label * q.others * expm1(0.0 - d), 0.0 - q.label * p.others * expm1(d))
    by_teacher = times(p.label, times(p.others, d))
    kl = times(p.label, p.log_label - q.log_label) + times(p.others, p.log_others - q.log_others)
    return gap, by_teacher, kl


@triton.jit
def entropy(sides, of_others):
    """The entropy of the whole distribution, given that among the others."""
    others = tl.where(sides.others > 0.0, sides.others * of_others, 0.0)
    return others - times(sides.label, sides.log_label) - times(sides.others, sides.log_others)
