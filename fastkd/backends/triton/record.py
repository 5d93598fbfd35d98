"""A row's record: its statistics in memory, for phases between which the shards' records are combined.

The layout is that of ``fastkd/backends/record.py``. All sums are relative to the row maxima, so that float32
suffices.
"""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import triton
import triton.language as tl

from fastkd.backends import record as records
from fastkd.backends.triton.arithmetic import LOG2E
from fastkd.backends.triton.compile_time import constant
from fastkd.backends.triton.shifts import origins
from fastkd.backends.triton.sweep1_statistics import Statistics
from fastkd.backends.triton.tiles import NEG_INF, finite_shift, lowered_by

# All columns are one constant, because before each launch Triton compares every constant that the kernel has
# read with its present value.
COLUMN: Any = constant(namedtuple("Column", records.COLUMNS)(*range(len(records.COLUMNS))))
COUNT = constant(len(records.COLUMNS))


@triton.jit
def _relative_to_maxima(rows, statistics, scales, DIVERGENCE: tl.constexpr):
    """``statistics`` with the row maxima as shifts."""
    shift_s = finite_shift(statistics.max_s) - rows.origin_s
    shift_t = finite_shift(statistics.max_t) - rows.origin_t
    by_s = (statistics.logit_shift_s - shift_s) * scales.log2_scale_s
    by_t = (statistics.logit_shift_t - shift_t) * scales.log2_scale_t
    stream_0, stream_1, stream_2 = DIVERGENCE.streams.moved(statistics, shift_s, shift_t, scales)
    grown_s, grown_t = tl.exp2(by_s), tl.exp2(by_t)
    z_ce = statistics.z_ce * tl.exp2((statistics.logit_shift_ce - shift_s) * LOG2E)
    moment_s = (statistics.moment_s + statistics.z_s * by_s) * grown_s
    moment_t = (statistics.moment_t + statistics.z_t * by_t) * grown_t
    return Statistics(
        shift_s, shift_t, shift_s, statistics.z_s * grown_s, statistics.z_t * grown_t, z_ce,
        stream_0, stream_1, stream_2, statistics.logit_sum, moment_s, moment_t,
        statistics.max_s, statistics.max_t, statistics.arg_s, statistics.arg_t,
    )  # fmt: skip


@triton.jit
def write_record(record, rows, statistics, cross_shift, label_s, label_t, scales, DIVERGENCE: tl.constexpr):
    """``label_s, label_t``: the label's logits, not relative to the origins."""
    vocab = rows.end - rows.begin
    statistics = _relative_to_maxima(rows, statistics, scales, DIVERGENCE)
    # The sum of the logits minus `vocab` times the maximum, with a label that the divergence splits off.
    logit_sum = statistics.logit_sum - statistics.logit_shift_s * vocab
    if DIVERGENCE.splits_label:
        logit_sum += tl.where(rows.label_column >= 0, label_s - rows.origin_s, 0.0)
    stream_0, stream_1 = statistics.stream_0, statistics.stream_1
    if not DIVERGENCE.has_cross:
        stream_0 *= scales.to_nats
        stream_1 *= scales.to_nats
    tl.store(record + COLUMN.max_s, statistics.max_s)
    tl.store(record + COLUMN.max_t, statistics.max_t)
    tl.store(record + COLUMN.z_s, statistics.z_s)
    tl.store(record + COLUMN.z_t, statistics.z_t)
    tl.store(record + COLUMN.z_ce, statistics.z_ce)
    tl.store(record + COLUMN.stream_0, stream_0)
    tl.store(record + COLUMN.stream_1, stream_1)
    tl.store(record + COLUMN.stream_2, statistics.stream_2)
    tl.store(record + COLUMN.cross_shift, cross_shift)
    tl.store(record + COLUMN.logit_sum, logit_sum)
    tl.store(record + COLUMN.label_s, label_s)
    tl.store(record + COLUMN.label_t, label_t)
    tl.store(record + COLUMN.moment_s, statistics.moment_s / scales.log2_scale_s)
    tl.store(record + COLUMN.moment_t, statistics.moment_t / scales.log2_scale_t)
    tl.store(record + COLUMN.arg_s, statistics.arg_s - rows.begin)
    tl.store(record + COLUMN.arg_t, statistics.arg_t - rows.begin)
    tl.store(record + COLUMN.columns, vocab)


@triton.jit
def read_record(record, rows, scales, DIVERGENCE: tl.constexpr):
    """``(rows with their origins, Statistics, cross_shift, label_s, label_t, columns)``"""
    max_s, max_t = tl.load(record + COLUMN.max_s), tl.load(record + COLUMN.max_t)
    columns = tl.load(record + COLUMN.columns)
    origin_s, origin_t = origins(max_s, max_t, scales, DIVERGENCE.reads_teacher)
    shift_s, shift_t = finite_shift(max_s) - origin_s, finite_shift(max_t) - origin_t
    cross_shift = tl.load(record + COLUMN.cross_shift)
    label_s, label_t = tl.load(record + COLUMN.label_s), tl.load(record + COLUMN.label_t)
    logit_sum = tl.load(record + COLUMN.logit_sum) + shift_s * columns
    if DIVERGENCE.splits_label:
        # A label of -inf has made the sum infinite, and the sum must stay so.
        logit_sum -= tl.where(label_s == NEG_INF, 0.0, label_s - origin_s)
    stream_0, stream_1 = tl.load(record + COLUMN.stream_0), tl.load(record + COLUMN.stream_1)
    if not DIVERGENCE.has_cross:
        stream_0 /= scales.to_nats
        stream_1 /= scales.to_nats
    statistics = Statistics(
        shift_s, shift_t, shift_s,
        tl.load(record + COLUMN.z_s), tl.load(record + COLUMN.z_t), tl.load(record + COLUMN.z_ce),
        stream_0, stream_1, tl.load(record + COLUMN.stream_2), logit_sum,
        tl.load(record + COLUMN.moment_s) * scales.log2_scale_s,
        tl.load(record + COLUMN.moment_t) * scales.log2_scale_t,
        max_s, max_t,
        tl.load(record + COLUMN.arg_s).to(tl.int64), tl.load(record + COLUMN.arg_t).to(tl.int64),
    )  # fmt: skip
    return lowered_by(rows, origin_s, origin_t), statistics, cross_shift, label_s, label_t, columns


@triton.jit
def read_sums(record):
    return tl.load(record + COLUMN.sum_0).to(tl.float32), tl.load(record + COLUMN.sum_1).to(tl.float32)


@triton.jit
def write_sums(record, sum_0, sum_1):
    tl.store(record + COLUMN.sum_0, sum_0)
    tl.store(record + COLUMN.sum_1, sum_1)
