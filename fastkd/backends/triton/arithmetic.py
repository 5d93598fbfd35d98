"""Elementary functions of full accuracy, for tiles and scalars alike."""

from __future__ import annotations

import triton
import triton.language as tl

from fastkd.backends.triton import compile_time
from fastkd.backends.triton.compile_time import constant, inlined

LOG2E = constant(1.4426950408889634)
LN2 = constant(0.6931471805599453)
TINY = constant(2.0**-126)  # the smallest normal float32
FUSED = constant(compile_time.FUSED)


@inlined
def fma(x, y, z):
    """``x * y + z`` in float32, rounded once."""
    if FUSED:
        return tl.fma(x, y, z)
    else:
        # The product of two float32 is exact in float64.
        return (tl.cast(x, tl.float64) * tl.cast(y, tl.float64) + tl.cast(z, tl.float64)).to(tl.float32)


@triton.jit
def times(weight, x):
    """``weight * x`` with ``0 * anything = 0``. Subnormal weights count as 0: ratios to them overflow."""
    return tl.where(weight < TINY, 0.0, weight * x)


@triton.jit
def log_quotient(a, b):
    """``log(a / b)``, exactly 0 where the two are equal, which a GPU's default division does not ensure."""
    return tl.log(tl.div_rn(a, b))


@triton.jit
def log1p(x):
    """``log(1 + x)`` for ``x`` in (-1, 1]: the logarithm of the rounded sum plus what the rounding lost.

    The lost part, at most 2**-24, should be divided by ``1 + x``. But for ``x`` below -1/2 the sum is exact,
    and above that the division would change the result by less than the result's own rounding.
    """
    total = 1.0 + x
    return tl.log(total) + (x - (total - 1.0))


@triton.jit
def expm1(x):
    """``exp(x) - 1``: near 0 by its series, whose first omitted term is at most 2e-8 of the result."""
    series = 1.0 + x * 0.125
    series = 1.0 + x * series * (1.0 / 7)
    series = 1.0 + x * series * (1.0 / 6)
    series = 1.0 + x * series * 0.2
    series = 1.0 + x * series * 0.25
    series = 1.0 + x * series * (1.0 / 3)
    series = 1.0 + x * series * 0.5
    return tl.where(tl.abs(x) < 0.5, x * series, tl.exp(x) - 1.0)
