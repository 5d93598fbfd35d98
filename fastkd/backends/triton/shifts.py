"""Exponentials relative to a shift of each row, and the conversion of their sums to another shift."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from fastkd.backends.triton.arithmetic import LOG2E, fma
from fastkd.backends.triton.compile_time import constant
from fastkd.backends.triton.divergences import Entry, has_cross, has_forward_stream
from fastkd.backends.triton.tiles import finite_shift, offset_between

# As exponents of 2: row maxima that differ by less than NEAR (half a nat) are near each other, and a logit
# beyond EXTREME has too few digits left for its differences from the row's other logits.
NEAR = constant(0.72)
EXTREME = constant(2.0**13)


class Shifts(NamedTuple):
    """The numbers that are subtracted before the exponential from logits relative to their row's origin.

    An exponent of 2 is ``fma(logit, c, -k)``, one instruction. ``k`` is the rounded ``shift * c``, so each
    exponential is ``2**rest`` times the one relative to ``shift``, and the sums are corrected for that. The
    rest is below 2**-24 of ``k``, which the origins keep below 2**13.
    """

    s: Any
    t: Any
    one: Any  # for the student's exponentials at temperature 1, if they are no powers of the others
    k_s: Any
    k_t: Any
    k_1: Any
    rest_s: Any
    rest_t: Any
    rest_1: Any
    offset: Any  # subtracted from ``t T / T_t - s``, makes it relative to both


@triton.jit
def origins(max_s, max_t, scales, TEACHER: tl.constexpr):
    """The origins, which are subtracted from each side's logits, given the row maxima.

    They are 0 where the maxima are near each other, since there the difference of two logits is exact and
    that of two lowered ones is not. Otherwise they are the maxima: this removes a constant between the sides,
    and turns numbers near float32's limits into small ones, or into -inf like a mask.
    """
    exponent_s = max_s * scales.c_s
    plain = tl.abs(exponent_s) < EXTREME  # False for infinities and NaN
    if TEACHER:
        exponent_t = max_t * scales.c_t
        plain = plain & (tl.abs(exponent_t) < EXTREME) & (tl.abs(exponent_t - exponent_s) < NEAR)
    origin_s = tl.where(plain, 0.0, finite_shift(max_s))
    if TEACHER:
        return origin_s, tl.where(plain, 0.0, finite_shift(max_t))
    else:
        return origin_s, origin_s


@triton.jit
def shared_shifts(shift_s, shift_t, scales, TEACHER: tl.constexpr):
    """At equal temperatures both rows use the larger shift, so that equal logits give bitwise equal
    exponentials and ``q - p`` keeps its digits. The origins ensure that the two are never far apart."""
    if TEACHER:
        share = scales.c_s == scales.c_t
        larger = tl.maximum(shift_s, shift_t)
        return tl.where(share, larger, shift_s), tl.where(share, larger, shift_t)
    else:
        return shift_s, shift_s


@triton.jit
def shifts_of(shift_s, shift_t, shift_1, scales):
    k_s, k_t, k_1 = shift_s * scales.c_s, shift_t * scales.c_t, shift_1 * LOG2E
    return Shifts(
        shift_s, shift_t, shift_1, k_s, k_t, k_1,
        fma(shift_s, scales.c_s, 0.0 - k_s),
        fma(shift_t, scales.c_t, 0.0 - k_t),
        fma(shift_1, LOG2E, 0.0 - k_1),
        offset_between(shift_s, shift_t, scales),
    )  # fmt: skip


@triton.jit
def unit_shift(shifts, POWER: tl.constexpr):
    """The shift that ``unit_exp`` is relative to."""
    if POWER == 0:
        return shifts.one
    else:
        return shifts.s


@triton.jit
def unit_rest(shifts, POWER: tl.constexpr):
    """The rest, as in ``Shifts``, of the result of ``unit_exp``."""
    if POWER == 0:
        return shifts.rest_1
    else:
        return shifts.rest_s * POWER


@triton.jit
def unit_exp(e, s, shifts, POWER: tl.constexpr):
    """The exponential at temperature 1, given that of ``s / T``: a power of it where T is 1 or 2."""
    if POWER == 1:
        return e
    elif POWER == 2:
        return e * e
    else:
        return tl.exp2(fma(s, LOG2E, 0.0 - shifts.k_1))


@triton.jit
def raw_entry(s, t, shifts, scales, TEACHER: tl.constexpr):
    """The fields of ``Entry`` that the first sweep needs; the others are placeholders."""
    xs = fma(s, scales.c_s, 0.0 - shifts.k_s)
    es = tl.exp2(xs)
    if TEACHER:
        xt = fma(t, scales.c_t, 0.0 - shifts.k_t)
        # From the logits' difference, not from the exponents, whose rounding would swamp a small ratio.
        relative = fma(t, scales.temperatures, 0.0 - s)
        return Entry(xs, xt, es, tl.exp2(xt), relative, es, es, es, es, es)
    else:
        return Entry(xs, xs, es, es, xs, es, es, es, es, es)


@triton.jit
def _moved(weighted, z, rescale, by):
    """``sum e * x`` after all ``e`` were multiplied by ``rescale`` and ``by`` was added to every ``x``."""
    return tl.where(rescale == 0.0, 0.0, rescale * (weighted + z * by))


@triton.jit
def _shrunk(power_sum, by):
    return tl.where(power_sum == 0.0, 0.0, power_sum * tl.exp2(by))


@triton.jit
def moved_streams(found, shift_s, shift_t, scales, DIVERGENCE: tl.constexpr):
    """The streams of ``Statistics``, made relative to other shifts."""
    by_s = (found.shift_s - shift_s) * scales.c_s
    by_t = (found.shift_t - shift_t) * scales.c_t
    stream_0, stream_1, stream_2 = found.stream_0, found.stream_1, found.stream_2
    if DIVERGENCE == "alpha_beta":
        power = scales.a + scales.b
        # For equal rows the three change by equal factors.
        stream_0 = _shrunk(stream_0, power * by_s + scales.a * (by_t - by_s))
        stream_1, stream_2 = _shrunk(stream_1, power * by_t), _shrunk(stream_2, power * by_s)
    elif has_cross(DIVERGENCE):
        stream_0 = _shrunk(stream_0, by_s + scales.a * (by_t - by_s))
    else:
        by = offset_between(found.shift_s, found.shift_t, scales) - offset_between(shift_s, shift_t, scales)
        if DIVERGENCE == "reverse_kl":
            stream_0 = _moved(stream_0, found.z_s, tl.exp2(by_s), by)
        elif has_forward_stream(DIVERGENCE):
            stream_0 = _moved(stream_0, found.z_t, tl.exp2(by_t), by)
        if DIVERGENCE == "jeffreys":
            stream_1 = _moved(stream_1, found.z_s, tl.exp2(by_s), by)
    return stream_0, stream_1, stream_2
