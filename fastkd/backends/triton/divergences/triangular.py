"""Triangular discrimination, the sum of ``(p - q)**2 / (p + q)``."""

from __future__ import annotations

import triton
import triton.language as tl

from fastkd.backends.triton.arithmetic import TINY, fma
from fastkd.backends.triton.divergences.arithmetic import own_side
from fastkd.backends.triton.divergences.base import Formulas
from fastkd.divergences import DIVERGENCES


@triton.jit
def _contrast(e):
    """``(q - p) / (q + p)``, which is 0 where both are 0, or so small that their sum is subnormal.

    The reciprocal comes from ``rsqrt``, which takes fewer instructions than a division.
    """
    root = tl.rsqrt(e.total)
    return tl.where(e.total < TINY, 0.0, e.gap * (root * root))


@triton.jit
def _add_sums(sum_0, sum_1, e, row, scales):  # the value, sum q dD/dq
    r = _contrast(e)
    return fma(e.gap, r, sum_0), fma(e.es, r * (2.0 - r), sum_1)


@triton.jit
def _normalised_sums(sum_0, sum_1, row):
    return sum_0 * row.inverse_t, sum_1 * row.inverse_s


@triton.jit
def _value(statistics, label, sum_0, sum_1, row, scales):
    # The value is sum q dD/dq + p dD/dp.
    return sum_0, (sum_1, sum_0 - sum_1, 0.0)


@triton.jit
def _gradients(e, constants, row, scales):
    r = _contrast(e)
    return e.es * (r * (2.0 - r) - constants[0]), e.et * (0.0 - r * (2.0 + r) - constants[1])


TRIANGULAR = Formulas(
    DIVERGENCES["triangular"],
    add_sums=_add_sums,
    normalised_sums=_normalised_sums,
    evaluate=_value,
    gradients=_gradients,
    gradient_units=own_side,
    weight="light",
)
