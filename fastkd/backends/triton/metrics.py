"""A row's metrics, in the order of ``fastkd.spec.METRICS``."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import triton
import triton.language as tl

from fastkd.backends.triton.arithmetic import LN2
from fastkd.backends.triton.compile_time import constant
from fastkd.backends.triton.value import split_entropy
from fastkd.spec import METRICS

COLUMN: Any = constant(namedtuple("Column", METRICS)(*range(len(METRICS))))
COUNT = constant(len(METRICS))


@triton.jit
def entropy_of(z, moment):
    return tl.log(z) - LN2 * (moment / z)


@triton.jit
def write_metrics(
    metrics, statistics, label, label_s, label_t, label_column, kd, ce,
    DIVERGENCE: tl.constexpr, TERMS: tl.constexpr,
):  # fmt: skip
    """``label``: the two-way split. Metrics that the call cannot have are NaN."""
    student = entropy_of(statistics.z_s, statistics.moment_s)
    teacher, agreement = float("nan"), float("nan")
    if DIVERGENCE.reads_teacher:
        teacher = entropy_of(statistics.z_t, statistics.moment_t)
        arg_s, arg_t = statistics.arg_s, statistics.arg_t
        if DIVERGENCE.splits_label:
            student, teacher = split_entropy(label.student, student), split_entropy(label.teacher, teacher)
            arg_s = _with_label(arg_s, statistics.max_s, label_s, label_column, TERMS.sharded)
            arg_t = _with_label(arg_t, statistics.max_t, label_t, label_column, TERMS.sharded)
        agreement = tl.where(arg_s == arg_t, 1.0, 0.0)
    tl.store(metrics + COLUMN.kd, kd)
    if TERMS.nll:
        tl.store(metrics + COLUMN.ce, ce)
    else:
        tl.store(metrics + COLUMN.ce, float("nan"))
    tl.store(metrics + COLUMN.student_entropy, student)
    tl.store(metrics + COLUMN.teacher_entropy, teacher)
    tl.store(metrics + COLUMN.agreement, agreement)


@triton.jit
def clear_metrics(metrics):
    for k in tl.static_range(COUNT):
        tl.store(metrics + k, 0.0)


@triton.jit
def _with_label(arg, largest, label, column, SHARDED: tl.constexpr):
    """The column of the largest logit, or -1 if that is the label's."""
    larger = label > largest
    if not SHARDED:  # a tie goes to the first column, which is not known among shards
        larger = larger | ((label == largest) & (column < arg))
    return tl.where(larger, -1, arg)
