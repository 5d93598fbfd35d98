"""The student's softmax at temperature 1, and what cross-entropy and z-loss make of it."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from fastkd.backends.triton.arithmetic import LOG2E
from fastkd.backends.triton.shifts import unit_rest, unit_shift
from fastkd.backends.triton.split import split


class Unit(NamedTuple):
    lse: Any  # log-sum-exp of the logits, which are relative to the row's origin
    nll: Any  # lse minus the label's logit
    label: Any  # probabilities of the label and of all others, if the label is split off
    others: Any


@triton.jit
def unit_softmax(found, label_s, SPLITS: tl.constexpr):
    shift = found.shift_1
    log_z = tl.log(found.z_1)
    if SPLITS:
        odds = label_s - shift - log_z
        two = split(odds)
        lse = tl.where(odds > 0.0, label_s - two.log_label, shift + log_z - two.log_others)
        return Unit(lse, 0.0 - two.log_label, two.label, two.others)
    else:
        return Unit(shift + log_z, log_z - (label_s - shift), 0.0, 1.0)


@triton.jit
def cross_entropy(found, unit, label_s, columns, smoothing, SMOOTHING: tl.constexpr, SPLITS: tl.constexpr):
    if SMOOTHING:
        total = found.logit_sum
        if SPLITS:
            total += label_s
        return (1.0 - smoothing) * unit.nll + smoothing * (unit.lse - total / columns)
    else:
        return unit.nll


@triton.jit
def unit_inverse(found, unit, row, POWER: tl.constexpr, SPLITS: tl.constexpr):
    """The factor that turns the last sweep's exponentials at temperature 1 into probabilities."""
    moved = (found.shift_1 - unit_shift(row.shifts, POWER)) * LOG2E
    z = found.z_1 * tl.exp2(moved + unit_rest(row.shifts, POWER))
    if SPLITS:
        return tl.where(z == 0.0, 0.0, unit.others / z)
    else:
        return 1.0 / z
