"""Arithmetic that several divergences share."""

from __future__ import annotations

import triton
import triton.language as tl

from fastkd.backends.triton.arithmetic import log_quotient
from fastkd.backends.triton.tiles import NEG_INF


@triton.jit
def exists(e, x, otherwise):
    """``x``, but ``otherwise`` for entries that are -inf on both sides."""
    return tl.where(tl.maximum(e.xs, e.xt) == NEG_INF, otherwise, x)


@triton.jit
def direction(e):
    """The sign of ``q - p``. For differences below 2**-100 it is a fraction, but those matter to no sum."""
    return tl.maximum(tl.minimum(e.gap * 2.0**100, 1.0), -1.0)


@triton.jit
def mean_log_ratio(stream, z, statistics, scales):
    """The mean of the log-ratio, given a linear stream and the normaliser of its exponentials."""
    return stream / z * scales.to_nats + log_quotient(statistics.z_s, statistics.z_t)


@triton.jit
def mixture_ratios(e, a, b):
    """``(log p - log m, log q - log m)`` with ``m = b p + a q``, ``a + b = 1``; arbitrary if p or q is 0.

    The larger of p and q is compared with m: by log1p if m is near it, which keeps full relative accuracy
    where p is close to q, and by the quotient otherwise. The other one then follows from the log-ratio.
    """
    q_larger = e.q >= e.p
    larger = tl.where(q_larger, e.q, e.p)  # not maximum and minimum, which would lose a NaN
    smaller = tl.where(q_larger, e.p, e.q)
    inverse = 1.0 / larger
    step = tl.where(q_larger, b, a) * ((smaller - larger) * inverse)
    near = step > -0.5
    quotient = tl.where(near, 1.0 + step, (b * e.p + a * e.q) * inverse)
    lost = tl.where(near, step - (quotient - 1.0), 0.0)
    from_larger = 0.0 - (tl.log(quotient) + lost)
    p_over_m = tl.where(q_larger, from_larger + e.log_ratio, from_larger)
    q_over_m = tl.where(q_larger, from_larger, from_larger - e.log_ratio)
    return p_over_m, q_over_m


@triton.jit
def over_teacher(row):
    """The ``gradient_units`` of gradients that are weighted by the teacher's exponentials."""
    return row.inverse_t, row.inverse_t


@triton.jit
def own_side(row):
    """The ``gradient_units`` of gradients that are weighted by their own side's exponentials."""
    return row.inverse_s, row.inverse_t


@triton.jit
def half_of_own_side(row):
    """The ``gradient_units`` of gradients that are weighted by half of their own side's exponentials."""
    return 0.5 * row.inverse_s, 0.5 * row.inverse_t
