"""Losses for draft models of speculative decoding."""

from __future__ import annotations

import triton
import triton.language as tl

from fastkd.backends.triton.arithmetic import LN2, expm1, fma, log1p, times
from fastkd.backends.triton.divergences.arithmetic import direction, exists, half_of_own_side
from fastkd.backends.triton.divergences.base import DISTANT_ROWS, Distant, Formulas
from fastkd.backends.triton.divergences.kl import FORWARD_STREAM, forward_kl_value
from fastkd.backends.triton.divergences.tvd import add_distances, normalised_distances
from fastkd.backends.triton.tiles import NEG_INF
from fastkd.divergences import DIVERGENCES


@triton.jit
def _is_distant(sum_0):
    """Whether 1 - sum |q - p| / 2 has lost digits: the bound ``DISTANT`` of ``fastkd/backends/record.py``."""
    return sum_0 > 1.75


@triton.jit
def _distant_exponent(e, row):
    """The exponent of 2 of the smaller probability."""
    return tl.where(e.log_ratio > 0.0, e.xs + tl.log2(row.inverse_s), e.xt + tl.log2(row.inverse_t))


@triton.jit
def _add_distant_sums(sum_0, sum_1, e, row, top):
    """``(u, v) / 2**top``, with those of a tile added: the sum of q where q < p, that of p where p < q; a tie
    adds half to each."""
    smaller = exists(e, tl.exp2(_distant_exponent(e, row) - top), 0.0)
    to_u = tl.where(e.log_ratio > 0.0, 1.0, tl.where(e.log_ratio < 0.0, 0.0, 0.5))
    return fma(smaller, to_u, sum_0), fma(smaller, 1.0 - to_u, sum_1)


@triton.jit
def _acceptance(statistics, label, sum_0, sum_1, row, scales):
    """The value. Negative sums are logarithms to base 2 of the distant row's sums."""
    distant = sum_0 < 0.0
    apart = 0.5 * sum_0
    shared = 1.0 - apart
    larger = tl.maximum(sum_0, sum_1)
    disjoint = larger == NEG_INF
    bits = larger + tl.log2(tl.exp2(sum_0 - larger) + tl.exp2(sum_1 - larger))  # log2 A; NaN if disjoint
    u, v = tl.where(disjoint, 0.0, tl.exp2(sum_0 - bits)), tl.where(disjoint, 0.0, tl.exp2(sum_1 - bits))
    rest_u, rest_v = 1.0 - tl.exp2(sum_0), 1.0 - tl.exp2(sum_1)
    away_s = tl.where(disjoint, NEG_INF, 0.0 - bits) + tl.log2(row.inverse_s)
    away_t = tl.where(disjoint, NEG_INF, 0.0 - bits) + tl.log2(row.inverse_t)
    divergence = tl.where(distant, tl.where(disjoint, float("inf"), -LN2 * bits), 0.0 - log1p(0.0 - apart))
    constants_0, constants_1 = tl.where(distant, u, sum_1), tl.where(distant, v, sum_1 - sum_0)
    constants_2 = tl.where(distant, rest_u, 1.0 / shared)
    return divergence, (constants_0, constants_1, constants_2, rest_v, away_s, away_t)


@triton.jit
def _acceptance_gradients(e, constants, row, scales):
    towards = direction(e)
    by_student = (constants[2] * e.es) * (towards - constants[0])
    return by_student, (constants[2] * e.et) * (constants[1] - towards)


@triton.jit
def _distant_gradients(e, constants, row, scales):
    in_s, in_t = tl.exp2(e.xs + constants[4]), tl.exp2(e.xt + constants[5])  # q / A, p / A
    ratio = e.log_ratio
    tie_s, tie_t = (0.5 - constants[2]) * in_s, (0.5 - constants[3]) * in_t
    by_student = tl.where(
        ratio > 0.0, 0.0 - constants[2] * in_s, tl.where(ratio < 0.0, e.q * constants[0], tie_s)
    )
    by_teacher = tl.where(
        ratio < 0.0, 0.0 - constants[3] * in_t, tl.where(ratio > 0.0, e.p * constants[1], tie_t)
    )
    return by_student, by_teacher


_DISTANT = Formulas(
    DIVERGENCES["log_acceptance"],
    DISTANT_ROWS,
    add_sums=add_distances,
    normalised_sums=normalised_distances,
    evaluate=_acceptance,
    gradients=_distant_gradients,
)
LOG_ACCEPTANCE = Formulas(
    DIVERGENCES["log_acceptance"],
    add_sums=add_distances,
    normalised_sums=normalised_distances,
    distant=Distant(_is_distant, _distant_exponent, _add_distant_sums, _DISTANT),
    evaluate=_acceptance,
    gradients=_acceptance_gradients,
    gradient_units=half_of_own_side,
)


@triton.jit
def _kl_tvd_value(statistics, label, sum_0, sum_1, row, scales):
    forward = forward_kl_value(statistics, scales)
    exponent = 0.0 - scales.b * (1.0 - 0.5 * sum_0)
    by_forward, by_apart = tl.exp(exponent), 0.0 - expm1(exponent)
    divergence = times(by_forward, forward) + by_apart * (0.5 * sum_0)
    return divergence, (sum_1, sum_1 - sum_0, forward, by_forward, by_apart)


@triton.jit
def _kl_tvd_gradients(e, constants, row, scales):
    towards, half = direction(e), 0.5 * constants[4]
    by_student = constants[3] * (e.gap * row.inverse_t) + (half * e.q) * (towards - constants[0])
    by_teacher = constants[3] * times(e.p, e.log_ratio - constants[2])
    return by_student, by_teacher + (half * e.p) * (constants[1] - towards)


KL_TVD = Formulas(
    DIVERGENCES["kl_tvd"],
    streams=FORWARD_STREAM,
    add_sums=add_distances,
    normalised_sums=normalised_distances,
    evaluate=_kl_tvd_value,
    gradients=_kl_tvd_gradients,
    weight="light",
)
