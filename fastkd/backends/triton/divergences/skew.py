"""The skewed KL divergences, of one side from a mixture of both."""

from __future__ import annotations

import triton
import triton.language as tl  # noqa: F401  # the interpreter looks for it among the globals

from fastkd.backends.triton.arithmetic import TINY, times
from fastkd.backends.triton.divergences.arithmetic import mixture_ratios
from fastkd.backends.triton.divergences.base import Formulas
from fastkd.backends.triton.divergences.streams import plus
from fastkd.divergences import DIVERGENCES


@triton.jit
def _excess(x, y, a, b):
    """``(x - m) / m`` with ``m = b x + a y``; NaN where both are 0, which ``times`` ignores."""
    return a * (x - y) / (b * x + a * y)


@triton.jit
def _value(statistics, label, sum_0, sum_1, row, scales):
    return sum_0, (sum_0 + scales.a * sum_1, sum_1, 0.0)


@triton.jit
def _add_forward_sums(sum_0, sum_1, e, row, scales):  # KL(p, m), sum q u with u = (p - m) / m
    a, b = scales.a, scales.b
    p_over_m, _ = mixture_ratios(e, a, b)
    return plus(sum_0, e.p, p_over_m, TINY), plus(sum_1, e.q, _excess(e.p, e.q, a, b), TINY)


@triton.jit
def _forward_gradients(e, constants, row, scales):
    a, b = scales.a, scales.b
    u = _excess(e.p, e.q, a, b)
    p_over_m, _ = mixture_ratios(e, a, b)
    return 0.0 - a * times(e.q, u - constants[1]), times(e.p, p_over_m - b * u - constants[0])


@triton.jit
def _add_reverse_sums(sum_0, sum_1, e, row, scales):  # KL(q, m), sum p u with u = (q - m) / m
    a, b = scales.a, scales.b
    _, q_over_m = mixture_ratios(e, b, a)
    return plus(sum_0, e.q, q_over_m, TINY), plus(sum_1, e.p, _excess(e.q, e.p, a, b), TINY)


@triton.jit
def _reverse_gradients(e, constants, row, scales):
    a, b = scales.a, scales.b
    u = _excess(e.q, e.p, a, b)
    _, q_over_m = mixture_ratios(e, b, a)
    return times(e.q, q_over_m - b * u - constants[0]), 0.0 - a * times(e.p, u - constants[1])


SKEW_FORWARD_KL = Formulas(
    DIVERGENCES["skew_forward_kl"],
    add_sums=_add_forward_sums,
    evaluate=_value,
    gradients=_forward_gradients,
)
SKEW_REVERSE_KL = Formulas(
    DIVERGENCES["skew_reverse_kl"],
    add_sums=_add_reverse_sums,
    evaluate=_value,
    gradients=_reverse_gradients,
)
