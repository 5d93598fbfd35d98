"""The Kullback-Leibler divergences in both directions, and their sum."""

from __future__ import annotations

import triton
import triton.language as tl  # noqa: F401  # the interpreter looks for it among the globals

from fastkd.backends.triton.arithmetic import fma, times
from fastkd.backends.triton.divergences.arithmetic import mean_log_ratio, over_teacher, own_side
from fastkd.backends.triton.divergences.base import Formulas
from fastkd.backends.triton.divergences.streams import (
    Streams,
    linear_total,
    moved_linear,
    moved_offset,
    plus_log_ratio,
    zero,
)
from fastkd.divergences import DIVERGENCES


@triton.jit
def _add_forward(part, e, shifts, scales):
    return plus_log_ratio(part.stream_0, e.et, e), part.stream_1, part.stream_2


@triton.jit
def _forward_total(part, sum_s, sum_t, shifts, scales):
    return linear_total(part.stream_0, sum_t, shifts.rest_t, shifts), zero(), zero()


@triton.jit
def _forward_moved(statistics, shift_s, shift_t, scales):
    by = moved_offset(statistics, shift_s, shift_t, scales)
    by_t = (statistics.logit_shift_t - shift_t) * scales.log2_scale_t
    stream_0 = moved_linear(statistics.stream_0, statistics.z_t, by_t, by)
    return stream_0, statistics.stream_1, statistics.stream_2


@triton.jit
def _add_reverse(part, e, shifts, scales):
    return plus_log_ratio(part.stream_0, e.es, e), part.stream_1, part.stream_2


@triton.jit
def _reverse_total(part, sum_s, sum_t, shifts, scales):
    return linear_total(part.stream_0, sum_s, shifts.rest_s, shifts), zero(), zero()


@triton.jit
def _reverse_moved(statistics, shift_s, shift_t, scales):
    by = moved_offset(statistics, shift_s, shift_t, scales)
    by_s = (statistics.logit_shift_s - shift_s) * scales.log2_scale_s
    stream_0 = moved_linear(statistics.stream_0, statistics.z_s, by_s, by)
    return stream_0, statistics.stream_1, statistics.stream_2


@triton.jit
def _add_both(part, e, shifts, scales):
    stream_0, stream_1 = plus_log_ratio(part.stream_0, e.et, e), plus_log_ratio(part.stream_1, e.es, e)
    return stream_0, stream_1, part.stream_2


@triton.jit
def _both_totals(part, sum_s, sum_t, shifts, scales):
    stream_0 = linear_total(part.stream_0, sum_t, shifts.rest_t, shifts)
    return stream_0, linear_total(part.stream_1, sum_s, shifts.rest_s, shifts), zero()


@triton.jit
def _both_moved(statistics, shift_s, shift_t, scales):
    by = moved_offset(statistics, shift_s, shift_t, scales)
    by_s = (statistics.logit_shift_s - shift_s) * scales.log2_scale_s
    by_t = (statistics.logit_shift_t - shift_t) * scales.log2_scale_t
    stream_0 = moved_linear(statistics.stream_0, statistics.z_t, by_t, by)
    stream_1 = moved_linear(statistics.stream_1, statistics.z_s, by_s, by)
    return stream_0, stream_1, statistics.stream_2


FORWARD_STREAM = Streams(1, _add_forward, _forward_total, _forward_moved)
_REVERSE_STREAM = Streams(1, _add_reverse, _reverse_total, _reverse_moved)
_BOTH_STREAMS = Streams(2, _add_both, _both_totals, _both_moved)


@triton.jit
def forward_kl_value(statistics, scales):
    return mean_log_ratio(statistics.stream_0, statistics.z_t, statistics, scales)


@triton.jit
def _forward_value(statistics, label, sum_0, sum_1, row, scales):
    forward = forward_kl_value(statistics, scales)
    return forward, (forward, 0.0, 0.0)


@triton.jit
def _forward_gradients(e, constants, row, scales):
    return e.gap, times(e.et, e.log_ratio - constants[0])


@triton.jit
def _reverse_value(statistics, label, sum_0, sum_1, row, scales):
    reverse = 0.0 - mean_log_ratio(statistics.stream_0, statistics.z_s, statistics, scales)
    return reverse, (reverse, 0.0, 0.0)


@triton.jit
def _reverse_gradients(e, constants, row, scales):
    return times(e.es, 0.0 - e.log_ratio - constants[0]), 0.0 - e.gap


@triton.jit
def _jeffreys_value(statistics, label, sum_0, sum_1, row, scales):
    forward = forward_kl_value(statistics, scales)
    reverse = 0.0 - mean_log_ratio(statistics.stream_1, statistics.z_s, statistics, scales)
    return forward + reverse, (forward, reverse, 0.0)


@triton.jit
def _jeffreys_gradients(e, constants, row, scales):
    by_student = fma(times(e.es, 0.0 - e.log_ratio - constants[1]), row.ratio, e.gap)
    return by_student, times(e.et, e.log_ratio - constants[0]) - e.gap


FORWARD_KL = Formulas(
    DIVERGENCES["forward_kl"],
    streams=FORWARD_STREAM,
    evaluate=_forward_value,
    gradients=_forward_gradients,
    gradient_units=over_teacher,
    weight="light",
)
REVERSE_KL = Formulas(
    DIVERGENCES["reverse_kl"],
    streams=_REVERSE_STREAM,
    evaluate=_reverse_value,
    gradients=_reverse_gradients,
    gradient_units=own_side,
    weight="light",
)
JEFFREYS = Formulas(
    DIVERGENCES["jeffreys"],
    streams=_BOTH_STREAMS,
    evaluate=_jeffreys_value,
    gradients=_jeffreys_gradients,
    gradient_units=over_teacher,
    weight="light",
)
