"""Exponentials relative to a shift of each row."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from fastkd.backends.triton.arithmetic import LOG2E, fma
from fastkd.backends.triton.compile_time import constant
from fastkd.backends.triton.divergences.base import Entry
from fastkd.backends.triton.tiles import finite_shift, offset_between

# As exponents of 2: row maxima that differ by less than NEAR (half a nat) are near each other, and a logit
# beyond EXTREME has too few digits left for its differences from the row's other logits.
NEAR = constant(0.72)
EXTREME = constant(2.0**13)


class Shifts(NamedTuple):
    """The numbers that are subtracted before the exponential from logits relative to their row's origin.

    An exponent of 2 is ``fma(logit, log2_scale, -shift)``, one instruction. A shift is the rounded product of
    a shift in logits and the scale, so each exponential is ``2**rest`` times the one relative to the shift in
    logits, and the sums are corrected for that. The rest is below 2**-24 of the shift, which the origins keep
    below 2**13.
    """

    logit_shift_s: Any
    logit_shift_t: Any
    logit_shift_ce: Any  # at temperature 1, if those exponentials are no powers of the others
    shift_s: Any
    shift_t: Any
    shift_ce: Any
    rest_s: Any
    rest_t: Any
    rest_ce: Any
    offset: Any  # subtracted from ``t T / T_t - s``, makes it relative to both


@triton.jit
def origins(max_s, max_t, scales, TEACHER: tl.constexpr):
    """The origins, which are subtracted from each side's logits, given the row maxima.

    They are 0 where the maxima are near each other, since there the difference of two logits is exact and
    that of two lowered ones is not. Otherwise they are the maxima: this removes a constant between the sides,
    and turns numbers near float32's limits into small ones, or into -inf like a mask.
    """
    exponent_s = max_s * scales.log2_scale_s
    plain = tl.abs(exponent_s) < EXTREME  # False for infinities and NaN
    if TEACHER:
        exponent_t = max_t * scales.log2_scale_t
        plain = plain & (tl.abs(exponent_t) < EXTREME) & (tl.abs(exponent_t - exponent_s) < NEAR)
    origin_s = tl.where(plain, 0.0, finite_shift(max_s))
    if TEACHER:
        return origin_s, tl.where(plain, 0.0, finite_shift(max_t))
    else:
        return origin_s, origin_s


@triton.jit
def shared_shifts(logit_shift_s, logit_shift_t, scales, TEACHER: tl.constexpr):
    """At equal temperatures both rows use the larger shift, so that equal logits give bitwise equal
    exponentials and ``q - p`` keeps its digits. The origins ensure that the two are never far apart."""
    if TEACHER:
        share = scales.log2_scale_s == scales.log2_scale_t
        larger = tl.maximum(logit_shift_s, logit_shift_t)
        return tl.where(share, larger, logit_shift_s), tl.where(share, larger, logit_shift_t)
    else:
        return logit_shift_s, logit_shift_s


@triton.jit
def shifts_of(logit_shift_s, logit_shift_t, logit_shift_ce, scales):
    shift_s, shift_t = logit_shift_s * scales.log2_scale_s, logit_shift_t * scales.log2_scale_t
    shift_ce = logit_shift_ce * LOG2E
    return Shifts(
        logit_shift_s, logit_shift_t, logit_shift_ce, shift_s, shift_t, shift_ce,
        fma(logit_shift_s, scales.log2_scale_s, 0.0 - shift_s),
        fma(logit_shift_t, scales.log2_scale_t, 0.0 - shift_t),
        fma(logit_shift_ce, LOG2E, 0.0 - shift_ce),
        offset_between(logit_shift_s, logit_shift_t, scales),
    )  # fmt: skip


@triton.jit
def ce_logit_shift(shifts, POWER: tl.constexpr):
    """The shift, in logits, that ``ce_exp`` is relative to."""
    if POWER == 0:
        return shifts.logit_shift_ce
    else:
        return shifts.logit_shift_s


@triton.jit
def ce_rest(shifts, POWER: tl.constexpr):
    """The rest, as in ``Shifts``, of the result of ``ce_exp``."""
    if POWER == 0:
        return shifts.rest_ce
    else:
        return shifts.rest_s * POWER


@triton.jit
def ce_exp(e, s, shifts, POWER: tl.constexpr):
    """The exponential at temperature 1, given that of ``s / T``: a power of it where T is 1 or 2."""
    if POWER == 1:
        return e
    elif POWER == 2:
        return e * e
    else:
        return tl.exp2(fma(s, LOG2E, 0.0 - shifts.shift_ce))


@triton.jit
def raw_entry(s, t, shifts, scales, TEACHER: tl.constexpr):
    """The fields of ``Entry`` that the first sweep needs; the others are placeholders."""
    xs = fma(s, scales.log2_scale_s, 0.0 - shifts.shift_s)
    es = tl.exp2(xs)
    if TEACHER:
        xt = fma(t, scales.log2_scale_t, 0.0 - shifts.shift_t)
        # From the logits' difference, not from the exponents, whose rounding would swamp a small ratio.
        relative = fma(t, scales.temperatures, 0.0 - s)
        return Entry(xs, xt, es, tl.exp2(xt), relative, es, es, es, es, es)
    else:
        return Entry(xs, xs, es, es, xs, es, es, es, es, es)
