"""The divergences: one branch each, per element, in float32 and natural logarithms.

With ``x = log p`` (teacher) and ``y = log q`` (student), ``ratio`` is ``x - y``. A term whose probability
is 0 counts 0 in every sum and every gradient, whatever the ratio there.

``forward_kl`` and ``reverse_kl`` are linear in the ratio, so their sum streams along with the sums of
exponentials, before either log-sum-exp is known (``streamed_term``). ``jsd`` is not, and takes a sweep of
its own (``summed_terms``).
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def streamed_term(e_s, e_t, u, v, DIVERGENCE: tl.constexpr):
    """Unnormalised ``weight * log-ratio``, from ``e = 2**exponent`` and the exponents ``u`` and ``v``."""
    if DIVERGENCE == "forward_kl":
        return tl.where(e_t == 0.0, 0.0, e_t * (v - u))
    else:
        return tl.where(e_s == 0.0, 0.0, e_s * (u - v))


@triton.jit
def log1p(a):
    """``log(1 + a)`` for ``a`` in (-1, 0]: the logarithm of the rounded sum plus what the rounding lost.

    The loss, at most 2**-25, belongs divided by ``1 + a``. But below -1/2 the sum is exact, and above, the
    quotient changes the result by less than its own rounding.
    """
    one_plus = 1.0 + a
    return tl.log(one_plus) + (a - (one_plus - 1.0))


@triton.jit
def mixture_ratios(p, q, ratio, beta):
    """``(log p/m, log q/m)`` with ``m = beta p + (1 - beta) q``.

    The larger of p and q is compared with m through log1p of an argument in (-1, 0], which keeps full
    relative accuracy where p is close to q; the other one then follows by the ratio.
    """
    q_larger = q >= p
    larger = tl.where(q_larger, q, p)  # not maximum and minimum, which lose a NaN
    smaller = tl.where(q_larger, p, q)
    step = tl.where(q_larger, beta, 1.0 - beta) * ((smaller - larger) / larger)
    from_larger = -log1p(step)
    p_over_m = tl.where(q_larger, from_larger + ratio, from_larger)
    q_over_m = tl.where(q_larger, from_larger, from_larger - ratio)
    return tl.where(p == 0.0, 0.0, p_over_m), tl.where(q == 0.0, 0.0, q_over_m)


@triton.jit
def summed_terms(p, q, ratio, beta, DIVERGENCE: tl.constexpr):
    """``(p log p/m, q log q/m)``: the terms of the two halves of the Jensen-Shannon divergence."""
    tl.static_assert(DIVERGENCE == "jsd")
    p_over_m, q_over_m = mixture_ratios(p, q, ratio, beta)
    return p * p_over_m, q * q_over_m


@triton.jit
def value(sum_a, sum_b, beta, DIVERGENCE: tl.constexpr):
    """The divergence from its sums over the row."""
    if DIVERGENCE == "jsd":
        return beta * sum_a + (1.0 - beta) * sum_b
    else:
        return sum_a


@triton.jit
def gradients(p, q, ratio, sum_a, sum_b, beta, DIVERGENCE: tl.constexpr):
    """``(dD/d(s/T), dD/d(t/T_t))``; the caller's unused one is never computed."""
    if DIVERGENCE == "forward_kl":
        return q - p, tl.where(p == 0.0, 0.0, p * (ratio - sum_a))
    elif DIVERGENCE == "reverse_kl":
        return tl.where(q == 0.0, 0.0, q * (-ratio - sum_a)), p - q
    else:
        p_over_m, q_over_m = mixture_ratios(p, q, ratio, beta)
        return (1.0 - beta) * q * (q_over_m - sum_b), beta * p * (p_over_m - sum_a)
