"""The skewed KL divergences, of one side from a mixture of both."""

from __future__ import annotations

import triton
import triton.language as tl

from fastkd.backends.triton.arithmetic import TINY, times
from fastkd.backends.triton.divergences.base import Formulas
from fastkd.backends.triton.divergences.streams import plus
from fastkd.divergences import DIVERGENCES


@triton.jit
def _to_mixture(x, y, a, b):
    """``(log x - log m, u)`` with ``m = b x + a y`` and ``u = (x - m) / m``, both by one division.

    ``x / m`` is ``1 + u``; each of the two has digits that the other has lost. NaN where x and y are both 0,
    which ``times`` and ``plus`` ignore.
    """
    inverse = 1.0 / tl.maximum(b * x + a * y, TINY)
    u = a * (x - y) * inverse
    near = tl.abs(u) < 0.5
    quotient = tl.where(near, 1.0 + u, x * inverse)
    lost = tl.where(near, u - (quotient - 1.0), 0.0)
    return tl.log(quotient) + lost, u


@triton.jit
def _value(statistics, label, sum_0, sum_1, row, scales):
    return sum_0, (sum_0 + scales.a * sum_1, sum_1, 0.0)


@triton.jit
def _add_sums(sum_0, sum_1, x, y, scales):  # KL(x, m), sum y u
    x_over_m, u = _to_mixture(x, y, scales.a, scales.b)
    # m - x, whose sum is 0, makes each term of second order where the models agree.
    return plus(sum_0, x, x_over_m, TINY) + scales.a * (y - x), plus(sum_1, y, u, TINY)


@triton.jit
def _gradients(x, y, constants, scales):
    """The gradients by the logits of ``x`` and of ``y``."""
    x_over_m, u = _to_mixture(x, y, scales.a, scales.b)
    by_x = times(x, x_over_m - scales.b * u - constants[0])
    return by_x, 0.0 - scales.a * times(y, u - constants[1])


@triton.jit
def _add_forward_sums(sum_0, sum_1, e, row, scales):
    return _add_sums(sum_0, sum_1, e.p, e.q, scales)


@triton.jit
def _forward_gradients(e, constants, row, scales):
    by_teacher, by_student = _gradients(e.p, e.q, constants, scales)
    return by_student, by_teacher


@triton.jit
def _add_reverse_sums(sum_0, sum_1, e, row, scales):
    return _add_sums(sum_0, sum_1, e.q, e.p, scales)


@triton.jit
def _reverse_gradients(e, constants, row, scales):
    return _gradients(e.q, e.p, constants, scales)


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
