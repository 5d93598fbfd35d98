"""Divergences that are functions of the sum of ``p**a q**b`` with ``a + b = 1``."""

from __future__ import annotations

import triton
import triton.language as tl

from fastkd.backends.triton.arithmetic import LN2, expm1, fma, log_quotient
from fastkd.backends.triton.divergences.arithmetic import exists
from fastkd.backends.triton.divergences.base import Formulas
from fastkd.backends.triton.divergences.streams import Streams, zero
from fastkd.backends.triton.tiles import row_total
from fastkd.divergences import DIVERGENCES


@triton.jit
def cross_term(e, power, shift, shifts, scales):
    """``et**a es**b 2**-shift``, given ``power = es**(a + b)``.

    Where the two sides are near each other, ``power`` is multiplied by a power of their ratio, which is
    exactly 1 for equal logits: a difference between ``p**a q**b`` and ``q**(a + b)`` is then no rounding
    error.
    """
    scale = scales.a * scales.log2_scale_s
    by = fma(e.relative, scale, scales.a * (shifts.rest_t - shifts.rest_s) - scale * shifts.offset)
    near = tl.abs(by) <= tl.where(shift == 0.0, 20.0, -1.0)
    far = scales.a * e.xt + scales.b * e.xs - shift
    term = tl.exp2(tl.where(near, by, far))
    return exists(e, tl.where(near, power * term, term), 0.0)


@triton.jit
def shrunk(power_sum, by):
    """A sum of powers times ``2**by``, where a sum of 0 stays 0."""
    return tl.where(power_sum == 0.0, 0.0, power_sum * tl.exp2(by))


@triton.jit
def _add(part, e, shifts, scales):
    return part.stream_0 + cross_term(e, e.es, 0.0, shifts, scales), part.stream_1, part.stream_2


@triton.jit
def _total(part, sum_s, sum_t, shifts, scales):
    by_s, by_t = 0.0 - shifts.rest_s, 0.0 - shifts.rest_t
    stream_0 = row_total(part.stream_0) * tl.exp2(by_s + scales.a * (by_t - by_s))
    return stream_0, zero(), zero()


@triton.jit
def _moved(statistics, shift_s, shift_t, scales):
    by_s = (statistics.logit_shift_s - shift_s) * scales.log2_scale_s
    by_t = (statistics.logit_shift_t - shift_t) * scales.log2_scale_t
    stream_0 = shrunk(statistics.stream_0, by_s + scales.a * (by_t - by_s))
    return stream_0, statistics.stream_1, statistics.stream_2


@triton.jit
def swept_cross(stream_0, shifts, scales):
    """The cross sum over the exponentials as sweep 3 computes them."""
    power = scales.a + scales.b
    return stream_0 * tl.exp2(power * shifts.rest_s + scales.a * (shifts.rest_t - shifts.rest_s))


@triton.jit
def _normalised(stream_0, stream_1, stream_2, z_s, log_const, cross_shift, shifts, scales):
    stream_0 = swept_cross(stream_0, shifts, scales)
    return stream_0, stream_1, stream_2, tl.where(stream_0 > 0.0, 1.0 / stream_0, 0.0), 0.0, 0.0


_STREAM = Streams(1, _add, _total, _moved, _normalised)


@triton.jit
def _log_cross(statistics, row, scales):
    """The logarithm of the sum of ``p**a q**b``."""
    unshifted = log_quotient(statistics.stream_0, row.z_s) + scales.a * row.log_const
    return unshifted + LN2 * row.cross_shift


@triton.jit
def _hellinger_value(statistics, label, sum_0, sum_1, row, scales):
    log_cross = _log_cross(statistics, row, scales)
    total = tl.exp(log_cross)
    return 0.0 - expm1(log_cross), (0.5 * total, 0.5 * total, 0.0)


@triton.jit
def _alpha_value(statistics, label, sum_0, sum_1, row, scales):
    a, b = scales.a, scales.b
    log_cross = _log_cross(statistics, row, scales)
    total = tl.exp(log_cross)
    return expm1(log_cross) / -(a * b), (total / a, total / b, 0.0)


@triton.jit
def _renyi_value(statistics, label, sum_0, sum_1, row, scales):
    a, b = scales.a, scales.b
    return _log_cross(statistics, row, scales) / -b, (1.0, a / b, 0.0)


@triton.jit
def _pearson_value(statistics, label, sum_0, sum_1, row, scales):
    log_cross = _log_cross(statistics, row, scales)
    total = tl.exp(log_cross)
    return expm1(log_cross), (total, -2.0 * total, 0.0)


@triton.jit
def _gradients(e, constants, row, scales):
    share = cross_term(e, e.es, row.cross_shift, row.shifts, scales) * row.scale_cross
    return constants[0] * (e.q - share), constants[1] * (e.p - share)


HELLINGER = Formulas(
    DIVERGENCES["hellinger"], streams=_STREAM, evaluate=_hellinger_value, gradients=_gradients
)
PEARSON_CHI2 = Formulas(
    DIVERGENCES["pearson_chi2"], streams=_STREAM, evaluate=_pearson_value, gradients=_gradients
)
ALPHA = Formulas(DIVERGENCES["alpha"], streams=_STREAM, evaluate=_alpha_value, gradients=_gradients)
RENYI = Formulas(DIVERGENCES["renyi"], streams=_STREAM, evaluate=_renyi_value, gradients=_gradients)
