"""The first sweep over one row pair: log-sum-exps and the divergence's streams, online and per lane."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from fastkd.backends.triton.arithmetic import LOG2E, times
from fastkd.backends.triton.divergences import (
    Entry,
    exists,
    has_cross,
    reads_teacher,
    splits_label,
    streams,
)
from fastkd.backends.triton.tiles import (
    NEG_INF,
    finite_shift,
    lane_max,
    lane_min,
    lane_sum,
    load_sides,
    offset_between,
)

FAR = tl.constexpr(2**31 - 1)


class Statistics(NamedTuple):
    """Of a row, or of each lane's part of it. Fields that the call does not need stay 0.

    Exponentials are ``2**((logit - max) * c)``.
    """

    max_s: Any
    max_t: Any
    z_s: Any  # sum of the student's exponentials at its temperature
    z_t: Any
    z_1: Any  # of those at temperature 1
    stream_0: Any
    stream_1: Any
    stream_2: Any
    logit_sum: Any
    moment_s: Any  # sum of exponentials times their exponents
    moment_t: Any
    arg_s: Any  # the first column of the largest logit
    arg_t: Any


@triton.jit
def unit_exp(e, distance, POWER: tl.constexpr):
    """``exp(distance)``, given ``e = exp(distance / T)``: a power of it where T is 1 or 2."""
    if POWER == 1:
        return e
    elif POWER == 2:
        return e * e
    else:
        return tl.exp2(distance * LOG2E)


@triton.jit
def raw_entry(s, t, shift_s, shift_t, offset, scales, TEACHER: tl.constexpr):
    """What the first sweep knows of entries. ``shift_s, shift_t, offset`` broadcast to their shape."""
    xs = (s - shift_s) * scales.c_s
    es = tl.exp2(xs)
    if TEACHER:
        xt = (t - shift_t) * scales.c_t
        # From the logits' difference, not from the exponents, whose rounding would drown a small ratio.
        relative = tl.fma(t, scales.temperatures, 0.0 - s) - offset
        return Entry(xs, xt, es, tl.exp2(xt), relative, es, es, es)
    else:
        return Entry(xs, xs, es, es, xs, es, es, es)


@triton.jit
def _moved(weighted, z, rescale, by):
    """``sum e * x`` after its exponentials shrank and every ``x`` grew ``by``."""
    return tl.where(rescale == 0.0, 0.0, rescale * (weighted + z * by))


@triton.jit
def _shrunk(power_sum, by):
    return tl.where(power_sum == 0.0, 0.0, power_sum * tl.exp2(by))


@triton.jit
def moved_streams(part, max_s, max_t, scales, DIVERGENCE: tl.constexpr):
    """The streams, relative to other maxima."""
    old_s, old_t, new_s, new_t = (
        finite_shift(part.max_s),
        finite_shift(part.max_t),
        finite_shift(max_s),
        finite_shift(max_t),
    )
    if has_cross(DIVERGENCE):
        by_s = (old_s - new_s) * scales.c_s
        by_t = (old_t - new_t) * scales.c_t
        if DIVERGENCE == "alpha_beta":
            power = scales.a + scales.b
            # Of equal rows the three change by equal factors.
            stream_0 = _shrunk(part.stream_0, power * by_s + scales.a * (by_t - by_s))
            return stream_0, _shrunk(part.stream_1, power * by_t), _shrunk(part.stream_2, power * by_s)
        else:
            return _shrunk(part.stream_0, by_s + scales.a * (by_t - by_s)), part.stream_1, part.stream_2
    else:
        by = offset_between(old_s, old_t, scales) - offset_between(new_s, new_t, scales)
        rescale_s = tl.exp2((part.max_s - new_s) * scales.c_s)
        rescale_t = tl.exp2((part.max_t - new_t) * scales.c_t)
        if DIVERGENCE == "reverse_kl":
            return _moved(part.stream_0, part.z_s, rescale_s, by), part.stream_1, part.stream_2
        elif DIVERGENCE == "jeffreys":
            stream_0 = _moved(part.stream_0, part.z_t, rescale_t, by)
            return stream_0, _moved(part.stream_1, part.z_s, rescale_s, by), part.stream_2
        elif DIVERGENCE == "forward_kl" or DIVERGENCE == "decoupled":
            return _moved(part.stream_0, part.z_t, rescale_t, by), part.stream_1, part.stream_2
        else:
            return part.stream_0, part.stream_1, part.stream_2


@triton.jit
def moved(
    part, max_s, max_t, scales,
    DIVERGENCE: tl.constexpr, UNIT: tl.constexpr, METRICS: tl.constexpr, POWER: tl.constexpr,
):  # fmt: skip
    """``part`` relative to other maxima; ``z_1`` as well if UNIT."""
    TEACHER: tl.constexpr = reads_teacher(DIVERGENCE)
    shift_s = finite_shift(max_s)
    rescale_s = tl.exp2((part.max_s - shift_s) * scales.c_s)
    stream_0, stream_1, stream_2 = moved_streams(part, max_s, max_t, scales, DIVERGENCE)
    z_1, moment_s, moment_t, z_t = part.z_1, part.moment_s, part.moment_t, part.z_t
    if UNIT:
        z_1 = z_1 * unit_exp(rescale_s, part.max_s - shift_s, POWER)
    if METRICS:
        by = (finite_shift(part.max_s) - shift_s) * scales.c_s
        moment_s = _moved(moment_s, part.z_s, rescale_s, by)
    if TEACHER:
        shift_t = finite_shift(max_t)
        rescale_t = tl.exp2((part.max_t - shift_t) * scales.c_t)
        if METRICS:
            by = (finite_shift(part.max_t) - shift_t) * scales.c_t
            moment_t = _moved(moment_t, z_t, rescale_t, by)
        z_t = z_t * rescale_t
    return Statistics(
        max_s, max_t, part.z_s * rescale_s, z_t, z_1, stream_0, stream_1, stream_2,
        part.logit_sum, moment_s, moment_t, part.arg_s, part.arg_t,
    )  # fmt: skip


@triton.jit
def _first(x, top, before, arg, columns):
    """The first column of each lane's maximum, of which this tile may hold a larger one."""
    here = lane_min(tl.where(x == top[None, :, None], columns, FAR))
    return tl.where(top > before, here, arg)


@triton.jit
def _add(
    rows, first, part, tile, scales,
    DIVERGENCE: tl.constexpr, UNIT: tl.constexpr, SMOOTHING: tl.constexpr, METRICS: tl.constexpr,
    POWER: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """``part`` and the tile that begins at column ``first``."""
    TEACHER: tl.constexpr = reads_teacher(DIVERGENCE)
    columns = first + tile
    s, t = load_sides(rows, columns, TEACHER, splits_label(DIVERGENCE), MASKED)
    max_s, max_t, arg_s, arg_t = tl.maximum(part.max_s, lane_max(s)), part.max_t, part.arg_s, part.arg_t
    if TEACHER:
        max_t = tl.maximum(max_t, lane_max(t))
    if METRICS:
        arg_s = _first(s, max_s, part.max_s, arg_s, columns)
        if TEACHER:
            arg_t = _first(t, max_t, part.max_t, arg_t, columns)
    part = moved(part, max_s, max_t, scales, DIVERGENCE, UNIT, METRICS, POWER)

    shift_s, shift_t = finite_shift(max_s), finite_shift(max_t)
    offset = offset_between(shift_s, shift_t, scales)
    e = raw_entry(
        s, t, shift_s[None, :, None], shift_t[None, :, None], offset[None, :, None], scales, TEACHER
    )
    stream_0, stream_1, stream_2 = streams(e, 0.0, scales, DIVERGENCE)
    z_1, z_t, logit_sum = part.z_1, part.z_t, part.logit_sum
    moment_s, moment_t = part.moment_s, part.moment_t
    if UNIT:
        z_1 += lane_sum(unit_exp(e.es, s - shift_s[None, :, None], POWER))
    if TEACHER:
        z_t += lane_sum(e.et)
    if SMOOTHING:
        counted = columns < rows.vocab
        if splits_label(DIVERGENCE):
            counted = counted & (columns != rows.label)
        logit_sum += lane_sum(tl.where(counted, s, 0.0))
    if METRICS:
        moment_s += lane_sum(times(e.es, e.xs))
        if TEACHER:
            moment_t += lane_sum(times(e.et, e.xt))
    return Statistics(
        max_s, max_t, part.z_s + lane_sum(e.es), z_t, z_1,
        part.stream_0 + stream_0, part.stream_1 + stream_1, part.stream_2 + stream_2,
        logit_sum, moment_s, moment_t, arg_s, arg_t,
    )  # fmt: skip


@triton.jit
def _meet(
    part, scales,
    DIVERGENCE: tl.constexpr, UNIT: tl.constexpr, METRICS: tl.constexpr, POWER: tl.constexpr,
):  # fmt: skip
    """The row's statistics from those of its lanes."""
    max_s, max_t = tl.max(part.max_s, axis=0), tl.max(part.max_t, axis=0)
    arg_s = tl.min(tl.where(part.max_s == max_s, part.arg_s, FAR), axis=0)
    arg_t = tl.min(tl.where(part.max_t == max_t, part.arg_t, FAR), axis=0)
    part = moved(part, max_s, max_t, scales, DIVERGENCE, UNIT, METRICS, POWER)
    return Statistics(
        max_s, max_t,
        tl.sum(part.z_s, axis=0), tl.sum(part.z_t, axis=0), tl.sum(part.z_1, axis=0),
        tl.sum(part.stream_0, axis=0), tl.sum(part.stream_1, axis=0), tl.sum(part.stream_2, axis=0),
        tl.sum(part.logit_sum, axis=0), tl.sum(part.moment_s, axis=0), tl.sum(part.moment_t, axis=0),
        arg_s.to(tl.int64), arg_t.to(tl.int64),
    )  # fmt: skip


@triton.jit
def row_statistics(
    rows, tile, scales,
    DIVERGENCE: tl.constexpr, UNIT: tl.constexpr, SMOOTHING: tl.constexpr, METRICS: tl.constexpr,
    POWER: tl.constexpr, LANES: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The first sweep: ``(Statistics, the exponent of 2 by which a cross sum is divided)``."""
    nothing = tl.zeros([LANES], tl.float32)
    lowest = tl.full([LANES], NEG_INF, tl.float32)
    nowhere = tl.zeros([LANES], tl.int32)
    part = Statistics(
        lowest, lowest, nothing, nothing, nothing, nothing, nothing, nothing,
        nothing, nothing, nothing, nowhere, nowhere,
    )  # fmt: skip
    full = rows.vocab // TILE
    for i in range(full):
        part = _add(rows, i * TILE, part, tile, scales, DIVERGENCE, UNIT, SMOOTHING, METRICS, POWER, False)
    if full * TILE < rows.vocab:
        part = _add(rows, full * TILE, part, tile, scales, DIVERGENCE, UNIT, SMOOTHING, METRICS, POWER, True)
    found = _meet(part, scales, DIVERGENCE, UNIT, METRICS, POWER)
    cross, cross_shift = found.stream_0, 0.0
    if has_cross(DIVERGENCE):
        in_range = (cross > 1e-18) & (cross < 1e30)  # False for NaN
        if not in_range:
            cross, cross_shift = _distant_cross(rows, tile, found, scales, DIVERGENCE, LANES, TILE)
    return with_powers(found, cross, found.stream_1, found.stream_2), cross_shift


@triton.jit
def with_powers(found, stream_0, stream_1, stream_2):
    """``found`` with other sums of powers."""
    return Statistics(
        found.max_s, found.max_t, found.z_s, found.z_t, found.z_1, stream_0, stream_1, stream_2,
        found.logit_sum, found.moment_s, found.moment_t, found.arg_s, found.arg_t,
    )  # fmt: skip


@triton.jit
def _distant_cross(
    rows, tile, found, scales, DIVERGENCE: tl.constexpr, LANES: tl.constexpr, TILE: tl.constexpr
):
    """The sum of ``p**a q**b`` between rows so far apart that its terms over- or underflow: once more,
    relative to its largest term. Rare, so every tile takes the slow way."""
    shift_s, shift_t = finite_shift(found.max_s), finite_shift(found.max_t)
    offset = offset_between(shift_s, shift_t, scales)
    tops = tl.full([LANES], NEG_INF, tl.float32)
    for start in range(0, rows.vocab, TILE):
        s, t = load_sides(rows, start + tile, True, False, True)
        e = raw_entry(s, t, shift_s, shift_t, offset, scales, True)
        exponent = scales.a * e.xt + scales.b * e.xs
        nowhere = tl.maximum(e.xs, e.xt) == NEG_INF
        tops = tl.maximum(tops, lane_max(tl.where(nowhere, NEG_INF, exponent)))
    top = tl.max(tops, axis=0)
    # Infinitely far, or no terms at all: the sum is what it is.
    shift = tl.where(tl.abs(top) == float("inf"), 0.0, top)
    cross = tl.zeros([LANES], tl.float32)
    for start in range(0, rows.vocab, TILE):
        s, t = load_sides(rows, start + tile, True, False, True)
        e = raw_entry(s, t, shift_s, shift_t, offset, scales, True)
        # As cross_term() has it where there is a shift.
        cross += lane_sum(exists(e, tl.exp2(scales.a * e.xt + scales.b * e.xs - shift)))
    return tl.sum(cross, axis=0), shift
