"""A row's value besides its divergence: cross-entropy, log-sum-exp, and the label's two-way split."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from fastkd.backends.triton.arithmetic import LOG2E, fma, log1p, log_quotient, times
from fastkd.backends.triton.shifts import ce_logit_shift, ce_rest
from fastkd.backends.triton.tiles import offset_between


class CESoftmax(NamedTuple):
    """The student's softmax at temperature 1."""

    lse: Any  # log-sum-exp of the logits, which are relative to the row's origin
    nll: Any  # lse minus the label's logit
    label: Any  # probabilities of the label and of all others, if the label is split off
    others: Any


class Split(NamedTuple):
    """A distribution as two classes, the label and all others."""

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
def _split(odds):
    """The ``Split`` with these log-odds of the label to all others."""
    rest = log1p(tl.exp(0.0 - tl.abs(odds)))
    log_label = tl.where(odds < 0.0, odds, 0.0) - rest
    log_others = tl.where(odds < 0.0, 0.0, 0.0 - odds) - rest
    return Split(tl.exp(log_label), tl.exp(log_others), log_label, log_others)


@triton.jit
def label_splits(statistics, label_s, label_t, scales):
    """The ``Label``, from the label's logits and the ``Statistics`` of all others."""
    shift_s, shift_t = statistics.logit_shift_s, statistics.logit_shift_t
    odds_s = (label_s - shift_s) * scales.to_nats - tl.log(statistics.z_s)
    odds_t = (label_t - shift_t) * (scales.to_nats * scales.temperatures) - tl.log(statistics.z_t)
    relative = fma(label_t, scales.temperatures, 0.0 - label_s) - offset_between(shift_s, shift_t, scales)
    ratio = fma(relative, scales.to_nats, log_quotient(statistics.z_s, statistics.z_t))
    # Both sides are equally certain: the ratio is 0, but the difference of infinities would be NaN.
    certain = (odds_s == odds_t) & (tl.abs(odds_s) == float("inf"))
    return Label(_split(odds_s), _split(odds_t), tl.where(certain, 0.0, ratio))


@triton.jit
def split_entropy(sides, of_others):
    """The entropy of the whole distribution, given that among the others."""
    others = tl.where(sides.others > 0.0, sides.others * of_others, 0.0)
    return others - times(sides.label, sides.log_label) - times(sides.others, sides.log_others)


@triton.jit
def find_ce_softmax(statistics, label_s, SPLITS: tl.constexpr):
    shift = statistics.logit_shift_ce
    log_z = tl.log(statistics.z_ce)
    if SPLITS:
        odds = label_s - shift - log_z
        two = _split(odds)
        lse = tl.where(odds > 0.0, label_s - two.log_label, shift + log_z - two.log_others)
        return CESoftmax(lse, 0.0 - two.log_label, two.label, two.others)
    else:
        return CESoftmax(shift + log_z, log_z - (label_s - shift), 0.0, 1.0)


@triton.jit
def cross_entropy(
    statistics, ce_softmax, label_s, columns, smoothing, SMOOTHING: tl.constexpr, SPLITS: tl.constexpr
):
    if SMOOTHING:
        total = statistics.logit_sum
        if SPLITS:
            total += label_s
        return (1.0 - smoothing) * ce_softmax.nll + smoothing * (ce_softmax.lse - total / columns)
    else:
        return ce_softmax.nll


@triton.jit
def ce_inverse(statistics, ce_softmax, row, POWER: tl.constexpr, SPLITS: tl.constexpr):
    """The factor that turns sweep 3's exponentials at temperature 1 into probabilities."""
    moved = (statistics.logit_shift_ce - ce_logit_shift(row.shifts, POWER)) * LOG2E
    z = statistics.z_ce * tl.exp2(moved + ce_rest(row.shifts, POWER))
    if SPLITS:
        return tl.where(z == 0.0, 0.0, ce_softmax.others / z)
    else:
        return 1.0 / z
