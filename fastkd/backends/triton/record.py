"""A row's record: its statistics in memory, for phases between which the shards' records are combined.

The layout is that of ``fastkd/backends/record.py``. All sums are relative to the row maxima, so that float32
suffices.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastkd.backends import record as records
from fastkd.backends.triton.arithmetic import LOG2E
from fastkd.backends.triton.compile_time import constant
from fastkd.backends.triton.shifts import origins
from fastkd.backends.triton.sweep1_statistics import Statistics
from fastkd.backends.triton.tiles import NEG_INF, finite_shift, lowered_by


def _column(name: str) -> int:
    number: int = constant(records.COLUMNS.index(name))
    return number


COUNT = constant(len(records.COLUMNS))
MAX_S, MAX_T = _column("max_s"), _column("max_t")
Z_S, Z_T, Z_CE = _column("z_s"), _column("z_t"), _column("z_ce")
STREAM_0, STREAM_1, STREAM_2 = _column("stream_0"), _column("stream_1"), _column("stream_2")
CROSS_SHIFT = _column("cross_shift")
LOGIT_SUM = _column("logit_sum")
LABEL_S, LABEL_T = _column("label_s"), _column("label_t")
MOMENT_S, MOMENT_T = _column("moment_s"), _column("moment_t")
ARG_S, ARG_T = _column("arg_s"), _column("arg_t")
NUMBER_OF_COLUMNS = _column("columns")
SUM_0, SUM_1 = _column("sum_0"), _column("sum_1")


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
    tl.store(record + MAX_S, statistics.max_s)
    tl.store(record + MAX_T, statistics.max_t)
    tl.store(record + Z_S, statistics.z_s)
    tl.store(record + Z_T, statistics.z_t)
    tl.store(record + Z_CE, statistics.z_ce)
    tl.store(record + STREAM_0, stream_0)
    tl.store(record + STREAM_1, stream_1)
    tl.store(record + STREAM_2, statistics.stream_2)
    tl.store(record + CROSS_SHIFT, cross_shift)
    tl.store(record + LOGIT_SUM, logit_sum)
    tl.store(record + LABEL_S, label_s)
    tl.store(record + LABEL_T, label_t)
    tl.store(record + MOMENT_S, statistics.moment_s / scales.log2_scale_s)
    tl.store(record + MOMENT_T, statistics.moment_t / scales.log2_scale_t)
    tl.store(record + ARG_S, statistics.arg_s - rows.begin)
    tl.store(record + ARG_T, statistics.arg_t - rows.begin)
    tl.store(record + NUMBER_OF_COLUMNS, vocab)


@triton.jit
def read_record(record, rows, scales, DIVERGENCE: tl.constexpr):
    """``(rows with their origins, Statistics, cross_shift, label_s, label_t, columns)``"""
    max_s, max_t = tl.load(record + MAX_S), tl.load(record + MAX_T)
    columns = tl.load(record + NUMBER_OF_COLUMNS)
    origin_s, origin_t = origins(max_s, max_t, scales, DIVERGENCE.reads_teacher)
    shift_s, shift_t = finite_shift(max_s) - origin_s, finite_shift(max_t) - origin_t
    cross_shift = tl.load(record + CROSS_SHIFT)
    label_s, label_t = tl.load(record + LABEL_S), tl.load(record + LABEL_T)
    logit_sum = tl.load(record + LOGIT_SUM) + shift_s * columns
    if DIVERGENCE.splits_label:
        # A label of -inf has made the sum infinite, and the sum must stay so.
        logit_sum -= tl.where(label_s == NEG_INF, 0.0, label_s - origin_s)
    stream_0, stream_1 = tl.load(record + STREAM_0), tl.load(record + STREAM_1)
    if not DIVERGENCE.has_cross:
        stream_0 /= scales.to_nats
        stream_1 /= scales.to_nats
    statistics = Statistics(
        shift_s, shift_t, shift_s,
        tl.load(record + Z_S), tl.load(record + Z_T), tl.load(record + Z_CE),
        stream_0, stream_1, tl.load(record + STREAM_2), logit_sum,
        tl.load(record + MOMENT_S) * scales.log2_scale_s, tl.load(record + MOMENT_T) * scales.log2_scale_t,
        max_s, max_t,
        tl.load(record + ARG_S).to(tl.int64), tl.load(record + ARG_T).to(tl.int64),
    )  # fmt: skip
    return lowered_by(rows, origin_s, origin_t), statistics, cross_shift, label_s, label_t, columns


@triton.jit
def read_sums(record):
    return tl.load(record + SUM_0).to(tl.float32), tl.load(record + SUM_1).to(tl.float32)


@triton.jit
def write_sums(record, sum_0, sum_1):
    tl.store(record + SUM_0, sum_0)
    tl.store(record + SUM_1, sum_1)
