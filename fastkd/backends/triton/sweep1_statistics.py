"""Sweep 1 over one row pair: log-sum-exps and the divergence's streams."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from fastkd.backends.triton.arithmetic import LOG2E, fma, times
from fastkd.backends.triton.compile_time import constant
from fastkd.backends.triton.divergences.arithmetic import exists
from fastkd.backends.triton.shifts import (
    ce_exp,
    ce_logit_shift,
    ce_rest,
    origins,
    raw_entry,
    shared_shifts,
    shifts_of,
)
from fastkd.backends.triton.tiles import (
    NEG_INF,
    edges,
    finite_shift,
    load_sides,
    load_stripes,
    lower,
    lowered_by,
    row_total,
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
    ``2**((logit - logit_shift) * log2_scale)``. Logits are relative to the row's origin, except for the
    maxima."""

    logit_shift_s: Any
    logit_shift_t: Any
    logit_shift_ce: Any  # for the exponentials at temperature 1
    z_s: Any  # normaliser: the sum of the student's exponentials at its temperature
    z_t: Any
    z_ce: Any
    stream_0: Any
    stream_1: Any
    stream_2: Any
    logit_sum: Any
    moment_s: Any  # sum of exponentials times their exponents
    moment_t: Any
    max_s: Any  # the row maxima and their first columns, if the call needs them
    max_t: Any
    arg_s: Any
    arg_t: Any


class Sums(NamedTuple):
    """The sums of a sweep, one for each place of a stripe."""

    z_s: Any
    z_t: Any
    z_ce: Any
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
def _add(rows, columns, s, t, part, shifts, scales, DIVERGENCE: tl.constexpr, TERMS: tl.constexpr):
    """``part`` with the logits of a stripe's ``columns`` added."""
    TEACHER: tl.constexpr = DIVERGENCE.reads_teacher
    own_s, own_t = widen_sides(rows, columns, s, t, DIVERGENCE.splits_label)
    s, t = lower(rows, own_s, own_t)
    e = raw_entry(s, t, shifts, scales, TEACHER)
    stream_0, stream_1, stream_2 = DIVERGENCE.streams.add(part, e, shifts, scales)
    z_ce, z_t, logit_sum = part.z_ce, part.z_t, part.logit_sum
    if TERMS.ce_softmax and TERMS.power == 2:
        z_ce = fma(e.es, e.es, z_ce)
    elif TERMS.ce_softmax and TERMS.power == 0:
        z_ce += ce_exp(e.es, s, shifts, 0)
    if TEACHER:
        z_t += e.et
    if TERMS.smoothing:
        counted = (columns >= rows.begin) & (columns < rows.end)
        if DIVERGENCE.splits_label:
            counted = counted & (columns != rows.label_column)
        logit_sum += tl.where(counted, s, 0.0)
    moment_s, moment_t = part.moment_s, part.moment_t
    max_s, max_t, arg_s, arg_t = part.max_s, part.max_t, part.arg_s, part.arg_t
    if TERMS.metrics:
        moment_s += times(e.es, e.xs)
        arg_s = tl.where(own_s > max_s, columns, arg_s)
        if TEACHER:
            moment_t += times(e.et, e.xt)
            arg_t = tl.where(own_t > max_t, columns, arg_t)
    if TERMS.maxima:
        max_s = tl.maximum(max_s, own_s)
        if TEACHER:
            max_t = tl.maximum(max_t, own_t)
    return Sums(
        part.z_s + e.es, z_t, z_ce, stream_0, stream_1, stream_2, logit_sum, moment_s, moment_t,
        max_s, max_t, arg_s, arg_t,
    )  # fmt: skip


@triton.jit
def _sweep(
    rows, stripe, shifts, scales, DIVERGENCE: tl.constexpr, TERMS: tl.constexpr,
    REPEAT: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr,
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
        loaded = load_stripes(rows, i * TILE, stripe, STRIPE, REPEAT, DIVERGENCE.reads_teacher)
        for k in tl.static_range(REPEAT):
            columns = i * TILE + k * STRIPE + stripe
            part = _add(rows, columns, loaded[k][0], loaded[k][1], part, shifts, scales, DIVERGENCE, TERMS)
    for edge in range(lead * REPEAT + tl.cdiv(rows.end - full * TILE, STRIPE)):
        columns = tl.where(edge < lead * REPEAT, edge, edge + (full - lead) * REPEAT) * STRIPE + stripe
        s, t = load_sides(rows, columns, DIVERGENCE.reads_teacher, True)
        part = _add(rows, columns, s, t, part, shifts, scales, DIVERGENCE, TERMS)
    return part


@triton.jit
def largest(x):
    return tl.max(tl.max(x, axis=1), axis=0)


@triton.jit
def _first(x, top, arg):
    """The first column with the largest logit."""
    return tl.min(tl.min(tl.where(x == top, arg, FAR), axis=1), axis=0).to(tl.int64)


@triton.jit
def statistics_of(part, shifts, scales, DIVERGENCE: tl.constexpr, TERMS: tl.constexpr):
    """The row's ``Statistics``, from the sums of each place, corrected for the rounding of the exponents."""
    by_s, by_t = 0.0 - shifts.rest_s, 0.0 - shifts.rest_t
    lost_s, lost_t = tl.exp2(by_s), tl.exp2(by_t)
    sum_s, sum_t = row_total(part.z_s), row_total(part.z_t)
    stream_0, stream_1, stream_2 = DIVERGENCE.streams.total(part, sum_s, sum_t, shifts, scales)
    zero = tl.full([], 0.0, tl.float32)
    z_ce, logit_sum, moment_s, moment_t = zero, zero, zero, zero
    if TERMS.ce_softmax and TERMS.power == 1:
        z_ce = sum_s * lost_s
    elif TERMS.ce_softmax:
        z_ce = row_total(part.z_ce) * tl.exp2(0.0 - ce_rest(shifts, TERMS.power))
    if TERMS.smoothing:
        logit_sum = row_total(part.logit_sum)
    max_s, max_t = shifts.logit_shift_s, shifts.logit_shift_t
    arg_s, arg_t = tl.zeros([], tl.int64), tl.zeros([], tl.int64)
    if TERMS.maxima:
        max_s, max_t = largest(part.max_s), largest(part.max_t)
    if TERMS.metrics:
        moment_s = (row_total(part.moment_s) + by_s * sum_s) * lost_s
        moment_t = (row_total(part.moment_t) + by_t * sum_t) * lost_t
        arg_s, arg_t = _first(part.max_s, max_s, part.arg_s), _first(part.max_t, max_t, part.arg_t)
    return Statistics(
        shifts.logit_shift_s, shifts.logit_shift_t, ce_logit_shift(shifts, TERMS.power),
        sum_s * lost_s, sum_t * lost_t, z_ce,
        stream_0, stream_1, stream_2, logit_sum, moment_s, moment_t, max_s, max_t, arg_s, arg_t,
    )  # fmt: skip


@triton.jit
def _maxima(rows, first, stripe, DIVERGENCE: tl.constexpr):
    s, t = load_sides(rows, first + stripe, DIVERGENCE.reads_teacher, True)
    s, t = widen_sides(rows, first + stripe, s, t, DIVERGENCE.splits_label)
    return largest(s), largest(t)


@triton.jit
def guess(max_s, max_t, scales, TEACHER: tl.constexpr):
    """``(origin_s, origin_t, logit_shift_s, logit_shift_t, logit_shift_ce)`` for rows with these maxima."""
    origin_s, origin_t = origins(max_s, max_t, scales, TEACHER)
    logit_shift_ce = finite_shift(max_s) - origin_s
    logit_shift_s, logit_shift_t = shared_shifts(
        logit_shift_ce, finite_shift(max_t) - origin_t, scales, TEACHER
    )
    return origin_s, origin_t, logit_shift_s, logit_shift_t, logit_shift_ce


@triton.jit
def find_statistics(
    rows, stripe, scales, DIVERGENCE: tl.constexpr, TERMS: tl.constexpr,
    REPEAT: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Sweep 1: ``(rows with their origins, Statistics, the exponent of 2 by which a cross sum is divided)``.

    Origins and shifts follow from a guess of the row maxima, made from the row's first stripe. float32
    tolerates a guess that is 60 powers of 2 too low. If it is further off, the kernel finds the maxima and
    sweeps over the row again.
    """
    STRIPE: tl.constexpr = LANES * WIDTH
    TEACHER: tl.constexpr = DIVERGENCE.reads_teacher
    CROSS: tl.constexpr = DIVERGENCE.has_cross
    headroom = 0.0 if CROSS else (HEADROOM_OF_SQUARES if TERMS.power == 2 else HEADROOM)
    most = MOST_OF_POWERS if CROSS else MOST
    max_s, max_t = _maxima(rows, 0, stripe, DIVERGENCE)
    origin_s, origin_t, logit_shift_s, logit_shift_t, logit_shift_ce = guess(max_s, max_t, scales, TEACHER)
    logit_shift_ce += HEADROOM / LOG2E
    logit_shift_s += headroom / scales.log2_scale_s
    logit_shift_t += headroom / scales.log2_scale_t
    z = tl.zeros([], tl.float32)
    statistics = Statistics(
        logit_shift_s, logit_shift_t, logit_shift_ce, z, z, z, z, z, z, z, z, z, z, z,
        tl.zeros([], tl.int64), tl.zeros([], tl.int64),
    )  # fmt: skip
    attempts = 0
    while attempts < 2:
        shifts = shifts_of(logit_shift_s, logit_shift_t, logit_shift_ce, scales)
        part = _sweep(
            lowered_by(rows, origin_s, origin_t), stripe, shifts, scales,
            DIVERGENCE, TERMS, REPEAT, LANES, WIDTH,
        )  # fmt: skip
        statistics = statistics_of(part, shifts, scales, DIVERGENCE, TERMS)
        guessed = (statistics.z_s > LEAST) & (statistics.z_s < most)  # False for NaN
        if TEACHER:
            guessed = guessed & (statistics.z_t > LEAST) & (statistics.z_t < most)
        if TERMS.ce_softmax and TERMS.power == 0:
            guessed = guessed & (statistics.z_ce > LEAST) & (statistics.z_ce < MOST)
        if guessed or attempts == 1:
            attempts = 2
        else:
            attempts = 1
            max_s, max_t = _maxima(rows, 0, stripe, DIVERGENCE)
            for first in range(STRIPE, rows.end, STRIPE):
                here_s, here_t = _maxima(rows, first, stripe, DIVERGENCE)
                max_s, max_t = tl.maximum(max_s, here_s), tl.maximum(max_t, here_t)
            origin_s, origin_t, logit_shift_s, logit_shift_t, logit_shift_ce = guess(
                max_s, max_t, scales, TEACHER
            )
    rows = lowered_by(rows, origin_s, origin_t)
    cross, cross_shift = statistics.stream_0, 0.0
    if CROSS:
        in_range = (cross > 1e-18) & (cross < 1e30)  # False for NaN
        if not in_range:
            cross, cross_shift = _distant_cross(rows, stripe, statistics, scales, LANES, WIDTH)
    statistics = with_powers(statistics, cross, statistics.stream_1, statistics.stream_2)
    return rows, statistics, cross_shift


@triton.jit
def with_powers(statistics, stream_0, stream_1, stream_2):
    """``statistics`` with other sums of powers."""
    return Statistics(
        statistics.logit_shift_s, statistics.logit_shift_t, statistics.logit_shift_ce,
        statistics.z_s, statistics.z_t, statistics.z_ce, stream_0, stream_1, stream_2,
        statistics.logit_sum, statistics.moment_s, statistics.moment_t,
        statistics.max_s, statistics.max_t, statistics.arg_s, statistics.arg_t,
    )  # fmt: skip


@triton.jit
def cross_exponent(e, scales):
    """``a xt + b xs``; -inf where both sides are -inf."""
    return exists(e, scales.a * e.xt + scales.b * e.xs, NEG_INF)


@triton.jit
def _distant_terms(rows, first, stripe, shifts, scales):
    s, t = load_sides(rows, first + stripe, True, True)
    s, t = widen_sides(rows, first + stripe, s, t, False)
    s, t = lower(rows, s, t)
    return cross_exponent(raw_entry(s, t, shifts, scales, True), scales)


@triton.jit
def _distant_cross(rows, stripe, statistics, scales, LANES: tl.constexpr, WIDTH: tl.constexpr):
    """The sum of ``p**a q**b`` of rows so far apart that its terms overflow or underflow, computed again
    relative to the largest term. This is rare, so every stripe has a mask."""
    shifts = shifts_of(statistics.logit_shift_s, statistics.logit_shift_t, statistics.logit_shift_ce, scales)
    tops = tl.full([LANES, WIDTH], NEG_INF, tl.float32)
    for first in range(0, rows.end, LANES * WIDTH):
        tops = tl.maximum(tops, _distant_terms(rows, first, stripe, shifts, scales))
    top = largest(tops)
    # If the rows are infinitely far apart, or there are no terms, no shift helps.
    shift = tl.where(tl.abs(top) == float("inf"), 0.0, top)
    cross = tl.zeros([LANES, WIDTH], tl.float32)
    for first in range(0, rows.end, LANES * WIDTH):
        # The formula of cross_term() for terms with a shift.
        cross += tl.exp2(_distant_terms(rows, first, stripe, shifts, scales) - shift)
    by_s, by_t = 0.0 - shifts.rest_s, 0.0 - shifts.rest_t
    return row_total(cross) * tl.exp2(scales.b * by_s + scales.a * by_t), shift
