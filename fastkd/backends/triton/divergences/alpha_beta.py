"""The alpha-beta divergence: the sums of ``p**a q**b``, ``p**(a + b)`` and ``q**(a + b)``."""

from __future__ import annotations

import triton
import triton.language as tl

from fastkd.backends.triton.arithmetic import LN2
from fastkd.backends.triton.divergences.arithmetic import exists
from fastkd.backends.triton.divergences.base import Formulas
from fastkd.backends.triton.divergences.powers import cross_term, shrunk, swept_cross
from fastkd.backends.triton.divergences.streams import Streams
from fastkd.backends.triton.tiles import row_total
from fastkd.divergences import DIVERGENCES


@triton.jit
def _student_power(e, scales):
    """``es**(a + b)``"""
    return exists(e, tl.exp2((scales.a + scales.b) * e.xs), 0.0)


@triton.jit
def _teacher_power(e, scales):
    """``et**(a + b)``"""
    return exists(e, tl.exp2((scales.a + scales.b) * e.xt), 0.0)


@triton.jit
def _add(part, e, shifts, scales):
    of_student = _student_power(e, scales)
    stream_0 = part.stream_0 + cross_term(e, of_student, 0.0, shifts, scales)
    return stream_0, part.stream_1 + _teacher_power(e, scales), part.stream_2 + of_student


@triton.jit
def _totals(part, sum_s, sum_t, shifts, scales):
    by_s, by_t = 0.0 - shifts.rest_s, 0.0 - shifts.rest_t
    a, b = scales.a, scales.b
    stream_0 = row_total(part.stream_0) * tl.exp2((a + b) * by_s + a * (by_t - by_s))
    stream_1 = row_total(part.stream_1) * tl.exp2((a + b) * by_t)
    return stream_0, stream_1, row_total(part.stream_2) * tl.exp2((a + b) * by_s)


@triton.jit
def _moved(statistics, shift_s, shift_t, scales):
    by_s = (statistics.logit_shift_s - shift_s) * scales.log2_scale_s
    by_t = (statistics.logit_shift_t - shift_t) * scales.log2_scale_t
    power = scales.a + scales.b
    # For equal rows the three change by equal factors.
    stream_0 = shrunk(statistics.stream_0, power * by_s + scales.a * (by_t - by_s))
    return stream_0, shrunk(statistics.stream_1, power * by_t), shrunk(statistics.stream_2, power * by_s)


@triton.jit
def _normalised(stream_0, stream_1, stream_2, z_s, log_const, cross_shift, shifts, scales):
    power = scales.a + scales.b
    stream_0 = swept_cross(stream_0, shifts, scales)
    stream_1 *= tl.exp2(power * shifts.rest_t)
    stream_2 *= tl.exp2(power * shifts.rest_s)
    # One common factor, so that equal sums stay equal.
    between = log_const * (1.0 / LN2)
    scale_q = tl.exp2(0.0 - power * tl.log2(z_s))
    scale_p = scale_q * tl.exp2(power * between)
    scale_cross = scale_q * tl.exp2(cross_shift + scales.a * between)
    return stream_0, stream_1, stream_2, scale_cross, scale_p, scale_q


@triton.jit
def _value(statistics, label, sum_0, sum_1, row, scales):
    a, b = scales.a, scales.b
    c = statistics.stream_0 * row.scale_cross
    of_p, of_q = statistics.stream_1 * row.scale_p, statistics.stream_2 * row.scale_q
    divergence = (-1.0 / (a * b)) * ((c - of_q) - a / (a + b) * (of_p - of_q))
    return divergence, (c - of_q, c - of_p, 0.0)


@triton.jit
def _gradients(e, constants, row, scales):
    of_student = _student_power(e, scales)
    cross = cross_term(e, of_student, row.cross_shift, row.shifts, scales) * row.scale_cross
    by_student = cross - of_student * row.scale_q - e.q * constants[0]
    by_teacher = cross - _teacher_power(e, scales) * row.scale_p - e.p * constants[1]
    return (-1.0 / scales.a) * by_student, (-1.0 / scales.b) * by_teacher


ALPHA_BETA = Formulas(
    DIVERGENCES["alpha_beta"],
    streams=Streams(3, _add, _totals, _moved, _normalised),
    evaluate=_value,
    gradients=_gradients,
)
