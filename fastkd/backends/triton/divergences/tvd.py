"""Total variation distance."""

from __future__ import annotations

import triton
import triton.language as tl

from fastkd.backends.triton.arithmetic import fma
from fastkd.backends.triton.divergences.arithmetic import direction, half_of_own_side
from fastkd.backends.triton.divergences.base import Formulas
from fastkd.divergences import DIVERGENCES


@triton.jit
def add_distances(sum_0, sum_1, e, row, scales):  # sum |q - p|, sum q sign(q - p)
    return sum_0 + tl.abs(e.gap), fma(e.es, direction(e), sum_1)


@triton.jit
def normalised_distances(sum_0, sum_1, row):
    sum_0 *= row.inverse_t
    return sum_0, sum_1 * row.inverse_s + 0.0 * sum_0  # keeps a NaN, which has no direction


@triton.jit
def _value(statistics, label, sum_0, sum_1, row, scales):
    return 0.5 * sum_0, (sum_1, sum_1 - sum_0, 0.0)


@triton.jit
def _gradients(e, constants, row, scales):
    towards = direction(e)
    return e.es * (towards - constants[0]), e.et * (constants[1] - towards)


TVD = Formulas(
    DIVERGENCES["tvd"],
    add_sums=add_distances,
    normalised_sums=normalised_distances,
    evaluate=_value,
    gradients=_gradients,
    gradient_units=half_of_own_side,
    weight="light",
)
