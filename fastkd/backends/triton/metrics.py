"""A row's metrics, in the order of ``fastkd.spec.METRICS``."""

from __future__ import annotations

import triton
import triton.language as tl

from fastkd.backends.triton.arithmetic import LN2
from fastkd.backends.triton.divergences import reads_teacher, splits_label
from fastkd.backends.triton.split import entropy as split_entropy


@triton.jit
def _entropy(z, moment):
    return tl.log(z) - LN2 * (moment / z)


@triton.jit
def write_metrics(
    metrics, found, label, label_s, label_t, column, kd, ce, DIVERGENCE: tl.constexpr, NLL: tl.constexpr,
    SHARDED: tl.constexpr,
):  # fmt: skip
    """``label``: the two-way split; ``column``: the label's. Metrics that the call cannot have are NaN."""
    student = _entropy(found.z_s, found.moment_s)
    teacher, agreement = float("nan"), float("nan")
    if reads_teacher(DIVERGENCE):
        teacher = _entropy(found.z_t, found.moment_t)
        arg_s, arg_t = found.arg_s, found.arg_t
        if splits_label(DIVERGENCE):
            student, teacher = split_entropy(label.student, student), split_entropy(label.teacher, teacher)
            arg_s = _with_label(arg_s, found.max_s, label_s, column, SHARDED)
            arg_t = _with_label(arg_t, found.max_t, label_t, column, SHARDED)
        agreement = tl.where(arg_s == arg_t, 1.0, 0.0)
    tl.store(metrics + 0, kd)
    if NLL:
        tl.store(metrics + 1, ce)
    else:
        tl.store(metrics + 1, float("nan"))
    tl.store(metrics + 2, student)
    tl.store(metrics + 3, teacher)
    tl.store(metrics + 4, agreement)


@triton.jit
def _with_label(arg, largest, label, column, SHARDED: tl.constexpr):
    """The column of the largest logit, or -1 if that is the label's."""
    larger = label > largest
    if not SHARDED:  # a tie goes to the first column, which is not known among shards
        larger = larger | ((label == largest) & (column < arg))
    return tl.where(larger, -1, arg)
