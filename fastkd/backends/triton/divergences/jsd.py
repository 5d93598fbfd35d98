"""The generalised Jensen-Shannon divergence, with ``m = b p + a q``."""

from __future__ import annotations

import triton
import triton.language as tl

from fastkd.backends.triton.arithmetic import TINY, fma, times
from fastkd.backends.triton.divergences.arithmetic import half_of_own_side, mixture_ratios
from fastkd.backends.triton.divergences.base import Formulas
from fastkd.backends.triton.divergences.streams import plus
from fastkd.divergences import DIVERGENCES


@triton.jit
def _add_sums(sum_0, sum_1, e, row, scales):  # KL(p, m), KL(q, m)
    p_over_m, q_over_m = mixture_ratios(e, scales.a, scales.b)
    return plus(sum_0, e.p, p_over_m, TINY), plus(sum_1, e.q, q_over_m, TINY)


@triton.jit
def _value(statistics, label, sum_0, sum_1, row, scales):
    return scales.b * sum_0 + scales.a * sum_1, (sum_0, sum_1, 0.0)


@triton.jit
def _gradients(e, constants, row, scales):
    a, b = scales.a, scales.b
    p_over_m, q_over_m = mixture_ratios(e, a, b)
    return a * times(e.q, q_over_m - constants[1]), b * times(e.p, p_over_m - constants[0])


@triton.jit
def _larger_over_mean(e):
    """``log(max(p, q) / m)`` with ``m = (p + q) / 2``: 2 atanh of ``|q - p| / (|q - p| + 2 (q + p))``.

    That quotient is at most 1/3, and up to there the odd polynomial is within 5e-9. The reciprocal comes from
    ``rsqrt``, since that needs no scaling.
    """
    distance = tl.abs(e.gap)
    root = tl.rsqrt(fma(e.total, 2.0, distance))
    x = distance * (root * root)
    square = x * x
    series = fma(square, 0.28012025356292725, 0.28001797199249268)
    series = fma(square, series, 0.40021526813507080)
    series = fma(square, series, 0.66666418313980103)
    return x * fma(square, series, 2.0)


@triton.jit
def _add_symmetric_sums(sum_0, sum_1, e, row, scales):
    ahead = _larger_over_mean(e)
    sum_0 = plus(sum_0, e.et, ahead + tl.minimum(e.log_ratio, 0.0), TINY)
    return sum_0, plus(sum_1, e.es, ahead - tl.maximum(e.log_ratio, 0.0), row.least_s)


@triton.jit
def _normalised_symmetric_sums(sum_0, sum_1, row):
    return sum_0 * row.inverse_t, sum_1 * row.inverse_s


@triton.jit
def _symmetric_gradients(e, constants, row, scales):
    ahead = _larger_over_mean(e)
    by_student = tl.where(
        e.es < row.least_s, 0.0, e.es * (ahead - tl.maximum(e.log_ratio, 0.0) - constants[1])
    )
    return by_student, times(e.et, ahead + tl.minimum(e.log_ratio, 0.0) - constants[0])


_SYMMETRIC = Formulas(
    DIVERGENCES["jsd"],
    "symmetric",
    add_sums=_add_symmetric_sums,
    normalised_sums=_normalised_symmetric_sums,
    evaluate=_value,
    gradients=_symmetric_gradients,
    gradient_units=half_of_own_side,
    weight="light",
)
JSD = Formulas(
    DIVERGENCES["jsd"],
    add_sums=_add_sums,
    evaluate=_value,
    gradients=_gradients,
    at_beta={0.5: _SYMMETRIC},
)
