"""The divergences: one branch each in ``streams``, ``sums``, ``value`` and ``gradients``.

All numbers are float32 and in nats unless stated otherwise; ``p`` is the teacher, ``q`` the student, ``a``
and ``b`` are those of ``Scales``. The formulas, and their sources, are those of ``csrc/divergences``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from fastkd.backends.triton.arithmetic import LN2, TINY, expm1, fma, log1p, log_quotient, times
from fastkd.backends.triton.compile_time import constexpr_function
from fastkd.backends.triton.split import two_ways
from fastkd.backends.triton.tiles import NEG_INF


class Scales(NamedTuple):
    """The call's numbers that the formulas need."""

    c_s: Any  # log2(e) over the temperature
    c_t: Any
    to_nats: Any  # 1 / T
    temperatures: Any  # T / T_t
    a: Any  # cross: the power of the teacher; mixtures: 1 - beta
    b: Any  # cross: the power of the student; else beta


class Entry(NamedTuple):
    """A tile of vocabulary entries. The first sweep has only the fields down to ``relative``."""

    xs: Any  # exponents of 2, relative to the shifts
    xt: Any
    es: Any  # 2**xs, 2**xt
    et: Any
    relative: Any  # t T / T_t - s
    p: Any
    q: Any
    gap: Any  # (q - p) Row.z_t, with one rounding; exactly 0 for equal entries of equal rows
    total: Any  # (q + p) Row.z_t
    log_ratio: Any  # log p - log q


class Row(NamedTuple):
    """The constants of a row in all sweeps but the first. Exponentials are those of ``Entry``."""

    shifts: Any
    z_s: Any  # sum of the student's exponentials
    inverse_s: Any  # 1 / sum of exponentials
    inverse_t: Any
    ratio: Any  # the teacher's sum of exponentials over the student's
    least_s: Any  # the least exponential whose product with the ratio is a normal number
    log_const: Any  # log(z_s / z_t), relative to the shifts
    log_base: Any  # log_ratio minus Entry.relative / T
    cross_shift: Any  # the cross terms are divided by 2 to this power
    scale_cross: Any  # factors that normalise one term of a cross sum and of the powers' sums
    scale_p: Any
    scale_q: Any


@constexpr_function
def reads_teacher(divergence):
    return divergence is not None and divergence != "off_support"


@constexpr_function
def has_sums(divergence):
    """Whether it needs a sweep between the first and the last."""
    mixtures = ("jsd", "symmetric_jsd", "skew_forward_kl", "skew_reverse_kl")
    return divergence in (*mixtures, "tvd", "log_acceptance", "distant_acceptance", "kl_tvd")


@constexpr_function
def has_distant(divergence):
    """Whether rows that share little probability need one more sweep, for ``distant_sums``."""
    return divergence == "log_acceptance"


@constexpr_function
def has_forward_stream(divergence):
    """Whether its stream 0 is that of the forward KL."""
    return divergence in ("forward_kl", "decoupled", "jeffreys", "kl_tvd")


@constexpr_function
def has_cross(divergence):
    """Whether its stream 0 is the sum of ``p**a q**b``."""
    return divergence in ("hellinger", "alpha", "renyi", "alpha_beta")


@constexpr_function
def splits_label(divergence):
    """Whether the label is left out of all sums and treated separately."""
    return divergence == "decoupled"


@triton.jit
def exists(e, x, otherwise):
    """``x``, but ``otherwise`` for entries that are -inf on both sides."""
    return tl.where(tl.maximum(e.xs, e.xt) == NEG_INF, otherwise, x)


@triton.jit
def cross_term(e, power, shift, shifts, scales):
    """``et**a es**b 2**-shift``, given ``power = es**(a + b)``.

    Where the two sides are near each other, ``power`` is multiplied by a power of their ratio, which is
    exactly 1 for equal logits: a difference between ``p**a q**b`` and ``q**(a + b)`` is then no rounding
    error.
    """
    scale = scales.a * scales.c_s
    by = fma(e.relative, scale, scales.a * (shifts.rest_t - shifts.rest_s) - scale * shifts.offset)
    near = tl.abs(by) <= tl.where(shift == 0.0, 20.0, -1.0)
    far = scales.a * e.xt + scales.b * e.xs - shift
    term = tl.exp2(tl.where(near, by, far))
    return exists(e, tl.where(near, power * term, term), 0.0)


@triton.jit
def student_power(e, scales, DIVERGENCE: tl.constexpr):
    """``es**(a + b)``"""
    if DIVERGENCE == "alpha_beta":
        return exists(e, tl.exp2((scales.a + scales.b) * e.xs), 0.0)
    else:
        return e.es


@triton.jit
def teacher_power(e, scales):
    return exists(e, tl.exp2((scales.a + scales.b) * e.xt), 0.0)


@triton.jit
def _plus(total, weight, x, least):
    """``total + weight * x`` with ``0 * anything = 0``, also for weights below ``least``."""
    return tl.where(weight < least, total, fma(weight, x, total))


@triton.jit
def streams(part, e, shift, shifts, scales, DIVERGENCE: tl.constexpr):
    """The sums of the first sweep, over unnormalised exponentials, with those of a tile added.

    Their terms are linear in the log-ratio, or powers. ``shift`` is that of ``cross_term``.
    """
    stream_0, stream_1, stream_2 = part.stream_0, part.stream_1, part.stream_2
    if has_forward_stream(DIVERGENCE):
        stream_0 = _plus(stream_0, e.et, e.relative, TINY)
    elif DIVERGENCE == "reverse_kl":
        stream_0 = _plus(stream_0, e.es, e.relative, TINY)
    elif has_cross(DIVERGENCE):
        of_student = student_power(e, scales, DIVERGENCE)
        stream_0 += cross_term(e, of_student, shift, shifts, scales)
        if DIVERGENCE == "alpha_beta":
            stream_1 += teacher_power(e, scales)
            stream_2 += of_student
    if DIVERGENCE == "jeffreys":
        stream_1 = _plus(stream_1, e.es, e.relative, TINY)
    return stream_0, stream_1, stream_2


@triton.jit
def larger_over_mean(e):
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
def excess(x, y, a, b):
    """``(x - m) / m`` with ``m = b x + a y``; NaN where both are 0, which ``times`` ignores."""
    return a * (x - y) / (b * x + a * y)


@triton.jit
def direction(e):
    """The sign of ``q - p``. For differences below 2**-100 it is a fraction, but those matter to no sum."""
    return tl.maximum(tl.minimum(e.gap * 2.0**100, 1.0), -1.0)


@triton.jit
def sums(sum_0, sum_1, e, row, scales, DIVERGENCE: tl.constexpr):
    """The two sums that need both log-sum-exps, with those of a tile added; see ``normalised_sums``."""
    a, b = scales.a, scales.b
    if DIVERGENCE == "symmetric_jsd":  # KL(p, m), KL(q, m)
        ahead = larger_over_mean(e)
        sum_0 = _plus(sum_0, e.et, ahead + tl.minimum(e.log_ratio, 0.0), TINY)
        return sum_0, _plus(sum_1, e.es, ahead - tl.maximum(e.log_ratio, 0.0), row.least_s)
    elif DIVERGENCE == "jsd":
        p_over_m, q_over_m = mixture_ratios(e, a, b)
        return _plus(sum_0, e.p, p_over_m, TINY), _plus(sum_1, e.q, q_over_m, TINY)
    elif DIVERGENCE == "skew_forward_kl":  # KL(p, m), sum q u with u = (p - m) / m
        p_over_m, _ = mixture_ratios(e, a, b)
        return _plus(sum_0, e.p, p_over_m, TINY), _plus(sum_1, e.q, excess(e.p, e.q, a, b), TINY)
    elif DIVERGENCE == "skew_reverse_kl":  # KL(q, m), sum p u with u = (q - m) / m
        _, q_over_m = mixture_ratios(e, b, a)
        return _plus(sum_0, e.q, q_over_m, TINY), _plus(sum_1, e.p, excess(e.q, e.p, a, b), TINY)
    else:  # sum |q - p|, sum q sign(q - p)
        tl.static_assert(DIVERGENCE == "tvd" or DIVERGENCE == "log_acceptance" or DIVERGENCE == "kl_tvd")
        return sum_0 + tl.abs(e.gap), fma(e.es, direction(e), sum_1)


@triton.jit
def normalised_sums(sum_0, sum_1, row, DIVERGENCE: tl.constexpr):
    """The results of ``sums`` as sums over probabilities."""
    if DIVERGENCE == "symmetric_jsd":
        return sum_0 * row.inverse_t, sum_1 * row.inverse_s
    elif DIVERGENCE == "tvd" or DIVERGENCE == "log_acceptance" or DIVERGENCE == "kl_tvd":
        sum_0 *= row.inverse_t
        return sum_0, sum_1 * row.inverse_s + 0.0 * sum_0  # keeps a NaN, which has no direction
    else:
        return sum_0, sum_1


@triton.jit
def is_distant(sum_0):
    """Whether 1 - sum |q - p| / 2 has lost digits: the bound ``DISTANT`` of ``fastkd/backends/record.py``."""
    return sum_0 > 1.75


@triton.jit
def distant_exponent(e, row):
    """The exponent of 2 of the smaller probability."""
    return tl.where(e.log_ratio > 0.0, e.xs + tl.log2(row.inverse_s), e.xt + tl.log2(row.inverse_t))


@triton.jit
def distant_sums(sum_0, sum_1, e, row, top):
    """``(u, v) / 2**top``, with those of a tile added: the sum of q where q < p, that of p where p < q; a tie
    adds half to each."""
    smaller = exists(e, tl.exp2(distant_exponent(e, row) - top), 0.0)
    to_u = tl.where(e.log_ratio > 0.0, 1.0, tl.where(e.log_ratio < 0.0, 0.0, 0.5))
    return fma(smaller, to_u, sum_0), fma(smaller, 1.0 - to_u, sum_1)


@triton.jit
def acceptance(sum_0, sum_1, row):
    """``(D, constants)``. Negative sums are logarithms to base 2 of ``distant_sums``."""
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
def mean_log_ratio(stream, z, log_const, scales):
    return stream / z * scales.to_nats + log_const


@triton.jit
def value(found, label, sum_0, sum_1, row, scales, DIVERGENCE: tl.constexpr):
    """``(D, constants for the gradients)``.

    ``found``: the statistics, with sums of powers relative to the row's shifts; ``label``: the two-way split.
    """
    a, b = scales.a, scales.b
    if DIVERGENCE == "jsd" or DIVERGENCE == "symmetric_jsd":
        return b * sum_0 + a * sum_1, (sum_0, sum_1, 0.0)
    elif DIVERGENCE == "skew_forward_kl" or DIVERGENCE == "skew_reverse_kl":
        return sum_0, (sum_0 + a * sum_1, sum_1, 0.0)
    elif DIVERGENCE == "tvd":
        return 0.5 * sum_0, (sum_1, sum_1 - sum_0, 0.0)
    elif DIVERGENCE == "log_acceptance":
        return acceptance(sum_0, sum_1, row)
    elif DIVERGENCE == "alpha_beta":
        c, of_p, of_q = (
            found.stream_0 * row.scale_cross,
            found.stream_1 * row.scale_p,
            found.stream_2 * row.scale_q,
        )
        divergence = (-1.0 / (a * b)) * ((c - of_q) - a / (a + b) * (of_p - of_q))
        return divergence, (c - of_q, c - of_p, 0.0)
    elif has_cross(DIVERGENCE):
        log_cross = log_quotient(found.stream_0, row.z_s) + a * row.log_const + LN2 * row.cross_shift
        total = tl.exp(log_cross)
        if DIVERGENCE == "renyi":
            return log_cross / -b, (1.0, a / b, 0.0)
        elif DIVERGENCE == "alpha":
            return expm1(log_cross) / -(a * b), (total / a, total / b, 0.0)
        else:
            tl.static_assert(DIVERGENCE == "hellinger")
            return 0.0 - expm1(log_cross), (0.5 * total, 0.5 * total, 0.0)
    else:
        log_const = log_quotient(found.z_s, found.z_t)
        forward = mean_log_ratio(found.stream_0, found.z_t, log_const, scales)
        if DIVERGENCE == "forward_kl":
            return forward, (forward, 0.0, 0.0)
        elif DIVERGENCE == "kl_tvd":
            exponent = 0.0 - b * (1.0 - 0.5 * sum_0)
            by_forward, by_apart = tl.exp(exponent), 0.0 - expm1(exponent)
            divergence = times(by_forward, forward) + by_apart * (0.5 * sum_0)
            return divergence, (sum_1, sum_1 - sum_0, forward, by_forward, by_apart)
        elif DIVERGENCE == "reverse_kl":
            reverse = 0.0 - mean_log_ratio(found.stream_0, found.z_s, log_const, scales)
            return reverse, (reverse, 0.0, 0.0)
        elif DIVERGENCE == "jeffreys":
            reverse = 0.0 - mean_log_ratio(found.stream_1, found.z_s, log_const, scales)
            return forward + reverse, (forward, reverse, 0.0)
        else:
            tl.static_assert(DIVERGENCE == "decoupled")
            # If no other class has probability, there is nothing to compare.
            others = tl.where(found.z_t > 0.0, forward, 0.0)
            gap, by_teacher, target = two_ways(label)
            return target + b * others, (gap, by_teacher, others)


@triton.jit
def gradient_units(row, DIVERGENCE: tl.constexpr):
    """The factors that ``gradients`` leaves to its caller."""
    if DIVERGENCE == "forward_kl" or DIVERGENCE == "jeffreys" or DIVERGENCE == "decoupled":
        return row.inverse_t, row.inverse_t
    elif DIVERGENCE == "reverse_kl":
        return row.inverse_s, row.inverse_t
    elif DIVERGENCE == "symmetric_jsd" or DIVERGENCE == "tvd" or DIVERGENCE == "log_acceptance":
        return 0.5 * row.inverse_s, 0.5 * row.inverse_t
    else:
        return 1.0, 1.0


@triton.jit
def gradients(e, constants, row, scales, DIVERGENCE: tl.constexpr):
    """``(dD/d(s/T), dD/d(t/T_t))`` over ``gradient_units``; one that the caller ignores is never computed."""
    a, b = scales.a, scales.b
    p, q = e.p, e.q
    if DIVERGENCE == "forward_kl":
        return e.gap, times(e.et, e.log_ratio - constants[0])
    elif DIVERGENCE == "reverse_kl":
        return times(e.es, 0.0 - e.log_ratio - constants[0]), 0.0 - e.gap
    elif DIVERGENCE == "jeffreys":
        by_student = fma(times(e.es, 0.0 - e.log_ratio - constants[1]), row.ratio, e.gap)
        return by_student, times(e.et, e.log_ratio - constants[0]) - e.gap
    elif DIVERGENCE == "symmetric_jsd":
        ahead = larger_over_mean(e)
        by_student = tl.where(
            e.es < row.least_s, 0.0, e.es * (ahead - tl.maximum(e.log_ratio, 0.0) - constants[1])
        )
        return by_student, times(e.et, ahead + tl.minimum(e.log_ratio, 0.0) - constants[0])
    elif DIVERGENCE == "jsd":
        p_over_m, q_over_m = mixture_ratios(e, a, b)
        return a * times(q, q_over_m - constants[1]), b * times(p, p_over_m - constants[0])
    elif DIVERGENCE == "skew_forward_kl":
        u = excess(p, q, a, b)
        p_over_m, _ = mixture_ratios(e, a, b)
        return 0.0 - a * times(q, u - constants[1]), times(p, p_over_m - b * u - constants[0])
    elif DIVERGENCE == "skew_reverse_kl":
        u = excess(q, p, a, b)
        _, q_over_m = mixture_ratios(e, b, a)
        return times(q, q_over_m - b * u - constants[0]), 0.0 - a * times(p, u - constants[1])
    elif DIVERGENCE == "tvd":
        towards = direction(e)
        return e.es * (towards - constants[0]), e.et * (constants[1] - towards)
    elif DIVERGENCE == "log_acceptance":
        towards = direction(e)
        by_student = (constants[2] * e.es) * (towards - constants[0])
        return by_student, (constants[2] * e.et) * (constants[1] - towards)
    elif DIVERGENCE == "distant_acceptance":
        in_s, in_t = tl.exp2(e.xs + constants[4]), tl.exp2(e.xt + constants[5])  # q / A, p / A
        ratio = e.log_ratio
        tie_s, tie_t = (0.5 - constants[2]) * in_s, (0.5 - constants[3]) * in_t
        by_student = tl.where(
            ratio > 0.0, 0.0 - constants[2] * in_s, tl.where(ratio < 0.0, q * constants[0], tie_s)
        )
        by_teacher = tl.where(
            ratio < 0.0, 0.0 - constants[3] * in_t, tl.where(ratio > 0.0, p * constants[1], tie_t)
        )
        return by_student, by_teacher
    elif DIVERGENCE == "kl_tvd":
        towards, half = direction(e), 0.5 * constants[4]
        by_student = constants[3] * (e.gap * row.inverse_t) + (half * q) * (towards - constants[0])
        by_teacher = constants[3] * times(p, e.log_ratio - constants[2])
        return by_student, by_teacher + (half * p) * (constants[1] - towards)
    elif DIVERGENCE == "alpha_beta":
        of_student = student_power(e, scales, DIVERGENCE)
        cross = cross_term(e, of_student, row.cross_shift, row.shifts, scales) * row.scale_cross
        by_student = cross - of_student * row.scale_q - q * constants[0]
        by_teacher = cross - teacher_power(e, scales) * row.scale_p - p * constants[1]
        return (-1.0 / a) * by_student, (-1.0 / b) * by_teacher
    elif has_cross(DIVERGENCE):
        share = cross_term(e, e.es, row.cross_shift, row.shifts, scales) * row.scale_cross
        return constants[0] * (q - share), constants[1] * (p - share)
    else:
        tl.static_assert(DIVERGENCE == "decoupled")
        by_teacher = times(e.et, b * (e.log_ratio - constants[2]) - constants[1])
        return b * e.gap - constants[0] * (e.es * row.ratio), by_teacher
