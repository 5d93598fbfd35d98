"""The first sweep over one row pair: log-sum-exps and the divergence's streams."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from fastkd.backends.triton.arithmetic import LOG2E, fma, times
from fastkd.backends.triton.compile_time import constant
from fastkd.backends.triton.divergences import (
    exists,
    has_cross,
    has_forward_stream,
    reads_teacher,
    splits_label,
    streams,
)
from fastkd.backends.triton.shifts import (
    moved_streams,
    origins,
    raw_entry,
    shared_shifts,
    shifts_of,
    unit_exp,
    unit_rest,
    unit_shift,
)
from fastkd.backends.triton.tiles import (
    NEG_INF,
    edges,
    finite_shift,
    load_sides,
    load_stripes,
    lower,
    lowered_by,
    widen_sides,
)

FAR = constant(2**31 - 1)
# The row maximum is guessed to exceed that of the first stripe by this many powers of 2. Exponentials, and
# their squares, then stay clear of float32's limits even if the maximum is 60 powers higher still.
HEADROOM = constant(24.0)
HEADROOM_OF_SQUARES = constant(16.0)
LEAST = constant(2.0**-60)
MOST = constant(2.0**60)
MOST_OF_POWERS = constant(2.0**24)  # for powers up to the fourth


class Statistics(NamedTuple):
    """The statistics of a row. Fields that the call does not need stay 0. Exponentials are
    ``2**((logit - shift) * c)``. Logits are relative to the row's origin, except for the maxima."""

    shift_s: Any
    shift_t: Any
    shift_1: Any  # for the exponentials at temperature 1
    z_s: Any  # sum of the student's exponentials at its temperature
    z_t: Any
    z_1: Any
    stream_0: Any
    stream_1: Any
    stream_2: Any
    logit_sum: Any
    moment_s: Any  # sum of exponentials times their exponents
    moment_t: Any
    max_s: Any  # the maxima and their first columns, if the call needs them
    max_t: Any
    arg_s: Any
    arg_t: Any


class Sums(NamedTuple):
    """The sums of a sweep, one for each place of a stripe."""

    z_s: Any
    z_t: Any
    z_1: Any
    stream_0: Any
    stream_1: Any
    stream_2: Any
    logit_sum: Any
    moment_s: Any
    moment_t: Any
    max_s: Any
    max_t: Any
    arg_s: Any
    arg_t: Any


@triton.jit
def _add(
    rows, columns, s, t, part, shifts, scales,
    DIVERGENCE: tl.constexpr, UNIT: tl.constexpr, SMOOTHING: tl.constexpr, METRICS: tl.constexpr,
    MAXIMA: tl.constexpr, POWER: tl.constexpr,
):  # fmt: skip
    """``part`` with the logits of a stripe's ``columns`` added."""
    TEACHER: tl.constexpr = reads_teacher(DIVERGENCE)
    own_s, own_t = widen_sides(rows, columns, s, t, splits_label(DIVERGENCE))
    s, t = lower(rows, own_s, own_t)
    e = raw_entry(s, t, shifts, scales, TEACHER)
    stream_0, stream_1, stream_2 = streams(part, e, 0.0, shifts, scales, DIVERGENCE)
    z_1, z_t, logit_sum = part.z_1, part.z_t, part.logit_sum
    if UNIT and POWER == 2:
        z_1 = fma(e.es, e.es, z_1)
    elif UNIT and POWER == 0:
        z_1 += unit_exp(e.es, s, shifts, POWER)
    if TEACHER:
        z_t += e.et
    if SMOOTHING:
        counted = (columns >= rows.begin) & (columns < rows.end)
        if splits_label(DIVERGENCE):
            counted = counted & (columns != rows.label)
        logit_sum += tl.where(counted, s, 0.0)
    moment_s, moment_t = part.moment_s, part.moment_t
    max_s, max_t, arg_s, arg_t = part.max_s, part.max_t, part.arg_s, part.arg_t
    if METRICS:
        moment_s += times(e.es, e.xs)
        arg_s = tl.where(own_s > max_s, columns, arg_s)
        if TEACHER:
            moment_t += times(e.et, e.xt)
            arg_t = tl.where(own_t > max_t, columns, arg_t)
    if MAXIMA:
        max_s = tl.maximum(max_s, own_s)
        if TEACHER:
            max_t = tl.maximum(max_t, own_t)
    return Sums(
        part.z_s + e.es, z_t, z_1, stream_0, stream_1, stream_2, logit_sum, moment_s, moment_t,
        max_s, max_t, arg_s, arg_t,
    )  # fmt: skip


@triton.jit
def _sweep(
    rows, stripe, shifts, scales,
    DIVERGENCE: tl.constexpr, UNIT: tl.constexpr, SMOOTHING: tl.constexpr, METRICS: tl.constexpr,
    MAXIMA: tl.constexpr, POWER: tl.constexpr, REPEAT: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The ``Sums`` of the whole row."""
    STRIPE: tl.constexpr = LANES * WIDTH
    TILE: tl.constexpr = REPEAT * STRIPE
    nothing = tl.zeros([LANES, WIDTH], tl.float32)
    lowest = tl.full([LANES, WIDTH], NEG_INF, tl.float32)
    nowhere = tl.zeros([LANES, WIDTH], tl.int32)
    part = Sums(
        nothing, nothing, nothing, nothing, nothing, nothing, nothing, nothing, nothing,
        lowest, lowest, nowhere, nowhere,
    )  # fmt: skip
    full, lead = edges(rows.begin, rows.end, TILE)
    for i in range(lead, full):
        loaded = load_stripes(rows, i * TILE, stripe, STRIPE, REPEAT, reads_teacher(DIVERGENCE))
        for k in tl.static_range(REPEAT):
            part = _add(
                rows, i * TILE + k * STRIPE + stripe, loaded[k][0], loaded[k][1], part, shifts, scales,
                DIVERGENCE, UNIT, SMOOTHING, METRICS, MAXIMA, POWER,
            )  # fmt: skip
    for edge in range(lead * REPEAT + tl.cdiv(rows.end - full * TILE, STRIPE)):
        columns = tl.where(edge < lead * REPEAT, edge, edge + (full - lead) * REPEAT) * STRIPE + stripe
        s, t = load_sides(rows, columns, reads_teacher(DIVERGENCE), True)
        part = _add(
            rows, columns, s, t, part, shifts, scales, DIVERGENCE, UNIT, SMOOTHING, METRICS, MAXIMA, POWER
        )
    return part


@triton.jit
def _total(x):
    return tl.sum(tl.sum(x, axis=1), axis=0)


@triton.jit
def _largest(x):
    return tl.max(tl.max(x, axis=1), axis=0)


@triton.jit
def _first(x, top, arg):
    """The first column with the largest logit."""
    return tl.min(tl.min(tl.where(x == top, arg, FAR), axis=1), axis=0).to(tl.int64)


@triton.jit
def _statistics(
    part, shifts, scales,
    DIVERGENCE: tl.constexpr, UNIT: tl.constexpr, SMOOTHING: tl.constexpr, METRICS: tl.constexpr,
    MAXIMA: tl.constexpr, POWER: tl.constexpr,
):  # fmt: skip
    """The row's ``Statistics``, from the sums of each place, corrected for the rounding of the exponents."""
    by_s, by_t = 0.0 - shifts.rest_s, 0.0 - shifts.rest_t
    lost_s, lost_t = tl.exp2(by_s), tl.exp2(by_t)
    sum_s, sum_t = _total(part.z_s), _total(part.z_t)
    zero = tl.full([], 0.0, tl.float32)
    stream_0, stream_1, stream_2 = zero, zero, zero
    a, b = scales.a, scales.b
    if DIVERGENCE == "alpha_beta":
        stream_0 = _total(part.stream_0) * tl.exp2((a + b) * by_s + a * (by_t - by_s))
        stream_1 = _total(part.stream_1) * tl.exp2((a + b) * by_t)
        stream_2 = _total(part.stream_2) * tl.exp2((a + b) * by_s)
    elif has_cross(DIVERGENCE):
        stream_0 = _total(part.stream_0) * tl.exp2(by_s + a * (by_t - by_s))
    elif DIVERGENCE == "reverse_kl":
        stream_0 = (_total(part.stream_0) - shifts.offset * sum_s) * lost_s
    elif has_forward_stream(DIVERGENCE):
        stream_0 = (_total(part.stream_0) - shifts.offset * sum_t) * lost_t
    if DIVERGENCE == "jeffreys":
        stream_1 = (_total(part.stream_1) - shifts.offset * sum_s) * lost_s
    z_1, logit_sum, moment_s, moment_t = zero, zero, zero, zero
    if UNIT and POWER == 1:
        z_1 = sum_s * lost_s
    elif UNIT:
        z_1 = _total(part.z_1) * tl.exp2(0.0 - unit_rest(shifts, POWER))
    if SMOOTHING:
        logit_sum = _total(part.logit_sum)
    max_s, max_t = shifts.s, shifts.t
    arg_s, arg_t = tl.zeros([], tl.int64), tl.zeros([], tl.int64)
    if MAXIMA:
        max_s, max_t = _largest(part.max_s), _largest(part.max_t)
    if METRICS:
        moment_s = (_total(part.moment_s) + by_s * sum_s) * lost_s
        moment_t = (_total(part.moment_t) + by_t * sum_t) * lost_t
        arg_s, arg_t = _first(part.max_s, max_s, part.arg_s), _first(part.max_t, max_t, part.arg_t)
    return Statistics(
        shifts.s, shifts.t, unit_shift(shifts, POWER), sum_s * lost_s, sum_t * lost_t, z_1,
        stream_0, stream_1, stream_2, logit_sum, moment_s, moment_t, max_s, max_t, arg_s, arg_t,
    )  # fmt: skip


@triton.jit
def _maxima(rows, first, stripe, DIVERGENCE: tl.constexpr):
    s, t = load_sides(rows, first + stripe, reads_teacher(DIVERGENCE), True)
    s, t = widen_sides(rows, first + stripe, s, t, splits_label(DIVERGENCE))
    return _largest(s), _largest(t)


@triton.jit
def _guess(max_s, max_t, scales, TEACHER: tl.constexpr):
    """``(origin_s, origin_t, shift_s, shift_t, shift_1)`` that suit rows with these maxima."""
    origin_s, origin_t = origins(max_s, max_t, scales, TEACHER)
    shift_1 = finite_shift(max_s) - origin_s
    shift_s, shift_t = shared_shifts(shift_1, finite_shift(max_t) - origin_t, scales, TEACHER)
    return origin_s, origin_t, shift_s, shift_t, shift_1


@triton.jit
def row_statistics(
    rows, stripe, scales,
    DIVERGENCE: tl.constexpr, UNIT: tl.constexpr, SMOOTHING: tl.constexpr, METRICS: tl.constexpr,
    MAXIMA: tl.constexpr, POWER: tl.constexpr, REPEAT: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The first sweep: ``(rows with their origins, Statistics, the exponent of 2 by which a cross sum is
    divided)``.

    Origins and shifts follow from a guess of the row maxima, made from the row's first stripe. float32
    tolerates a guess that is 60 powers of 2 too low. If it is further off, the kernel finds the maxima and
    sweeps over the row again.
    """
    STRIPE: tl.constexpr = LANES * WIDTH
    TEACHER: tl.constexpr = reads_teacher(DIVERGENCE)
    CROSS: tl.constexpr = has_cross(DIVERGENCE)
    headroom = 0.0 if CROSS else (HEADROOM_OF_SQUARES if POWER == 2 else HEADROOM)
    most = MOST_OF_POWERS if CROSS else MOST
    max_s, max_t = _maxima(rows, 0, stripe, DIVERGENCE)
    origin_s, origin_t, shift_s, shift_t, shift_1 = _guess(max_s, max_t, scales, TEACHER)
    shift_1 += HEADROOM / LOG2E
    shift_s += headroom / scales.c_s
    shift_t += headroom / scales.c_t
    z = tl.zeros([], tl.float32)
    found = Statistics(
        shift_s,
        shift_t,
        shift_1,
        z,
        z,
        z,
        z,
        z,
        z,
        z,
        z,
        z,
        z,
        z,
        tl.zeros([], tl.int64),
        tl.zeros([], tl.int64),
    )
    attempts = 0
    while attempts < 2:
        shifts = shifts_of(shift_s, shift_t, shift_1, scales)
        part = _sweep(
            lowered_by(rows, origin_s, origin_t), stripe, shifts, scales,
            DIVERGENCE, UNIT, SMOOTHING, METRICS, MAXIMA, POWER, REPEAT, LANES, WIDTH,
        )  # fmt: skip
        found = _statistics(part, shifts, scales, DIVERGENCE, UNIT, SMOOTHING, METRICS, MAXIMA, POWER)
        guessed = (found.z_s > LEAST) & (found.z_s < most)  # False for NaN
        if TEACHER:
            guessed = guessed & (found.z_t > LEAST) & (found.z_t < most)
        if UNIT and POWER == 0:
            guessed = guessed & (found.z_1 > LEAST) & (found.z_1 < MOST)
        if guessed or attempts == 1:
            attempts = 2
        else:
            attempts = 1
            max_s, max_t = _maxima(rows, 0, stripe, DIVERGENCE)
            for first in range(STRIPE, rows.end, STRIPE):
                here_s, here_t = _maxima(rows, first, stripe, DIVERGENCE)
                max_s, max_t = tl.maximum(max_s, here_s), tl.maximum(max_t, here_t)
            origin_s, origin_t, shift_s, shift_t, shift_1 = _guess(max_s, max_t, scales, TEACHER)
    rows = lowered_by(rows, origin_s, origin_t)
    cross, cross_shift = found.stream_0, 0.0
    if CROSS:
        in_range = (cross > 1e-18) & (cross < 1e30)  # False for NaN
        if not in_range:
            cross, cross_shift = _distant_cross(rows, stripe, found, scales, LANES, WIDTH)
    return rows, with_powers(found, cross, found.stream_1, found.stream_2), cross_shift


@triton.jit
def with_powers(found, stream_0, stream_1, stream_2):
    """``found`` with other sums of powers."""
    return Statistics(
        found.shift_s, found.shift_t, found.shift_1, found.z_s, found.z_t, found.z_1,
        stream_0, stream_1, stream_2, found.logit_sum, found.moment_s, found.moment_t,
        found.max_s, found.max_t, found.arg_s, found.arg_t,
    )  # fmt: skip


@triton.jit
def relative_to_maxima(rows, found, scales, DIVERGENCE: tl.constexpr):
    """``found`` with the row maxima as shifts."""
    shift_s, shift_t = finite_shift(found.max_s) - rows.origin_s, finite_shift(found.max_t) - rows.origin_t
    by_s, by_t = (found.shift_s - shift_s) * scales.c_s, (found.shift_t - shift_t) * scales.c_t
    stream_0, stream_1, stream_2 = moved_streams(found, shift_s, shift_t, scales, DIVERGENCE)
    grown_s, grown_t = tl.exp2(by_s), tl.exp2(by_t)
    z_1 = found.z_1 * tl.exp2((found.shift_1 - shift_s) * LOG2E)
    moment_s = (found.moment_s + found.z_s * by_s) * grown_s
    moment_t = (found.moment_t + found.z_t * by_t) * grown_t
    return Statistics(
        shift_s, shift_t, shift_s, found.z_s * grown_s, found.z_t * grown_t, z_1,
        stream_0, stream_1, stream_2, found.logit_sum, moment_s, moment_t,
        found.max_s, found.max_t, found.arg_s, found.arg_t,
    )  # fmt: skip


@triton.jit
def _distant_terms(rows, first, stripe, shifts, scales):
    """``a xt + b xs`` of a stripe; -inf where both sides are -inf."""
    s, t = load_sides(rows, first + stripe, True, True)
    s, t = widen_sides(rows, first + stripe, s, t, False)
    s, t = lower(rows, s, t)
    e = raw_entry(s, t, shifts, scales, True)
    return exists(e, scales.a * e.xt + scales.b * e.xs, NEG_INF)


@triton.jit
def _distant_cross(rows, stripe, found, scales, LANES: tl.constexpr, WIDTH: tl.constexpr):
    """The sum of ``p**a q**b`` of rows so far apart that its terms overflow or underflow, computed again
    relative to the largest term. This is rare, so every stripe has a mask."""
    shifts = shifts_of(found.shift_s, found.shift_t, found.shift_1, scales)
    tops = tl.full([LANES, WIDTH], NEG_INF, tl.float32)
    for first in range(0, rows.end, LANES * WIDTH):
        tops = tl.maximum(tops, _distant_terms(rows, first, stripe, shifts, scales))
    top = _largest(tops)
    # If the rows are infinitely far apart, or there are no terms, no shift helps.
    shift = tl.where(tl.abs(top) == float("inf"), 0.0, top)
    cross = tl.zeros([LANES, WIDTH], tl.float32)
    for first in range(0, rows.end, LANES * WIDTH):
        # The formula of cross_term() for terms with a shift.
        cross += tl.exp2(_distant_terms(rows, first, stripe, shifts, scales) - shift)
    by_s, by_t = 0.0 - shifts.rest_s, 0.0 - shifts.rest_t
    return _total(cross) * tl.exp2(scales.b * by_s + scales.a * by_t), shift
