"""A row's record: its statistics in memory, for phases between which the shards' records are combined.

The layout is that of ``csrc/params.h``. All sums are relative to the row maxima, so that float32 suffices
(``fastkd/backends/record.py``).
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastkd.backends.triton.compile_time import constant
from fastkd.backends.triton.divergences import has_cross, reads_teacher, splits_label
from fastkd.backends.triton.shifts import origins
from fastkd.backends.triton.statistics import Statistics, relative_to_maxima
from fastkd.backends.triton.tiles import NEG_INF, finite_shift, lowered_by

COLUMNS = constant(19)
SUM_0 = constant(17)


@triton.jit
def write_record(record, rows, found, cross_shift, label_s, label_t, scales, DIVERGENCE: tl.constexpr):
    """``label_s, label_t``: the label's logits, not relative to the origins."""
    vocab = rows.end - rows.begin
    found = relative_to_maxima(rows, found, scales, DIVERGENCE)
    # The sum of the logits minus `vocab` times the maximum, with a label that the divergence splits off.
    logit_sum = found.logit_sum - found.shift_s * vocab
    if splits_label(DIVERGENCE):
        logit_sum += tl.where(rows.label >= 0, label_s - rows.origin_s, 0.0)
    stream_0, stream_1 = found.stream_0, found.stream_1
    if not has_cross(DIVERGENCE):
        stream_0 *= scales.to_nats
        stream_1 *= scales.to_nats
    tl.store(record + 0, found.max_s)
    tl.store(record + 1, found.max_t)
    tl.store(record + 2, found.z_s)
    tl.store(record + 3, found.z_t)
    tl.store(record + 4, found.z_1)
    tl.store(record + 5, stream_0)
    tl.store(record + 6, stream_1)
    tl.store(record + 7, found.stream_2)
    tl.store(record + 8, cross_shift)
    tl.store(record + 9, logit_sum)
    tl.store(record + 10, label_s)
    tl.store(record + 11, label_t)
    tl.store(record + 12, found.moment_s / scales.c_s)
    tl.store(record + 13, found.moment_t / scales.c_t)
    tl.store(record + 14, found.arg_s - rows.begin)
    tl.store(record + 15, found.arg_t - rows.begin)
    tl.store(record + 16, vocab)


@triton.jit
def read_record(record, rows, scales, DIVERGENCE: tl.constexpr):
    """``(rows with their origins, Statistics, cross_shift, label_s, label_t, columns)``"""
    max_s, max_t, columns = tl.load(record + 0), tl.load(record + 1), tl.load(record + 16)
    origin_s, origin_t = origins(max_s, max_t, scales, reads_teacher(DIVERGENCE))
    shift_s, shift_t = finite_shift(max_s) - origin_s, finite_shift(max_t) - origin_t
    cross_shift, label_s, label_t = tl.load(record + 8), tl.load(record + 10), tl.load(record + 11)
    logit_sum = tl.load(record + 9) + shift_s * columns
    if splits_label(DIVERGENCE):
        # A label of -inf has made the sum infinite, and the sum must stay so.
        logit_sum -= tl.where(label_s == NEG_INF, 0.0, label_s - origin_s)
    stream_0, stream_1 = tl.load(record + 5), tl.load(record + 6)
    if not has_cross(DIVERGENCE):
        stream_0 /= scales.to_nats
        stream_1 /= scales.to_nats
    found = Statistics(
        shift_s, shift_t, shift_s, tl.load(record + 2), tl.load(record + 3), tl.load(record + 4),
        stream_0, stream_1, tl.load(record + 7), logit_sum,
        tl.load(record + 12) * scales.c_s, tl.load(record + 13) * scales.c_t,
        max_s, max_t, tl.load(record + 14).to(tl.int64), tl.load(record + 15).to(tl.int64),
    )  # fmt: skip
    return lowered_by(rows, origin_s, origin_t), found, cross_shift, label_s, label_t, columns
