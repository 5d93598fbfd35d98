"""A row pair whose log-sum-exps are known, as sweeps 2 and 3 see it."""

from __future__ import annotations

import triton
import triton.language as tl

from fastkd.backends.triton.arithmetic import TINY, fma, log_quotient
from fastkd.backends.triton.divergences.base import Entry, Row
from fastkd.backends.triton.shifts import raw_entry, shared_shifts, shifts_of
from fastkd.backends.triton.sweep1_statistics import with_powers


@triton.jit
def _over(x, z, SPLITS: tl.constexpr):
    # If no other class has probability, the exponentials are all 0 and must stay 0.
    if SPLITS:
        return tl.where(z == 0.0, 0.0, x / z)
    else:
        return x / z


@triton.jit
def row_of(statistics, cross_shift, scales, DIVERGENCE: tl.constexpr):
    """``(Row, Statistics)``, with the sums of powers, if there are any, relative to the row's shifts."""
    SPLITS: tl.constexpr = DIVERGENCE.splits_label
    logit_shift_s, logit_shift_t = shared_shifts(
        statistics.logit_shift_s, statistics.logit_shift_t, scales, DIVERGENCE.reads_teacher
    )
    shifts = shifts_of(logit_shift_s, logit_shift_t, statistics.logit_shift_ce, scales)
    z_s = statistics.z_s * tl.exp2((statistics.logit_shift_s - logit_shift_s) * scales.log2_scale_s)
    z_t = statistics.z_t * tl.exp2((statistics.logit_shift_t - logit_shift_t) * scales.log2_scale_t)
    # The sums of the exponentials as the sweeps compute them.
    swept_s, swept_t = z_s * tl.exp2(shifts.rest_s), z_t * tl.exp2(shifts.rest_t)
    scale_cross, scale_p, scale_q = 0.0, 0.0, 0.0
    log_const = log_quotient(z_s, z_t)
    if DIVERGENCE.has_cross:
        z_s, log_const = swept_s, log_quotient(swept_s, swept_t)
        stream_0, stream_1, stream_2 = DIVERGENCE.streams.moved(
            statistics, logit_shift_s, logit_shift_t, scales
        )
        stream_0, stream_1, stream_2, scale_cross, scale_p, scale_q = DIVERGENCE.streams.normalised(
            stream_0, stream_1, stream_2, z_s, log_const, cross_shift, shifts, scales
        )
        statistics = with_powers(statistics, stream_0, stream_1, stream_2)
    ratio = _over(swept_t, swept_s, SPLITS)
    row = Row(
        shifts, z_s, _over(1.0, swept_s, SPLITS), _over(1.0, swept_t, SPLITS), ratio,
        tl.maximum(TINY, TINY / ratio), log_const, log_const - shifts.offset * scales.to_nats,
        cross_shift, scale_cross, scale_p, scale_q,
    )  # fmt: skip
    return row, statistics


@triton.jit
def entry(s, t, row, scales, TEACHER: tl.constexpr):
    e = raw_entry(s, t, row.shifts, scales, TEACHER)
    return Entry(
        e.xs, e.xt, e.es, e.et, e.relative, e.et * row.inverse_t, e.es * row.inverse_s,
        fma(e.es, row.ratio, 0.0 - e.et),
        fma(e.es, row.ratio, e.et),
        fma(e.relative, scales.to_nats, row.log_ratio_offset),
    )  # fmt: skip
