"""The sweeps over one row pair whose log-sum-exps are known: sums that need them, and the gradients."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from fastkd.backends.triton.arithmetic import LN2, TINY, fma, log_quotient
from fastkd.backends.triton.divergences import (
    Entry,
    Row,
    distant_exponent,
    distant_sums,
    exists,
    gradient_units,
    gradients,
    has_cross,
    has_sums,
    normalised_sums,
    reads_teacher,
    splits_label,
    sums,
)
from fastkd.backends.triton.shifts import moved_streams, raw_entry, shared_shifts, shifts_of, unit_exp
from fastkd.backends.triton.statistics import with_powers
from fastkd.backends.triton.tiles import (
    NEG_INF,
    edges,
    load_sides,
    load_stripes,
    lower,
    store_tile,
    widen,
    widen_sides,
)


class Outputs(NamedTuple):
    """The memory for the gradients: pointers to column 0, or None."""

    student: Any
    teacher: Any
    s_stride: Any
    t_stride: Any


class Factors(NamedTuple):
    """The factors of the gradients' terms, with ``grad_scale`` and the weights."""

    kd_s: Any  # of dD/d(s/T) and dD/d(t/T_t)
    kd_t: Any
    unit: Any  # of the exponential at temperature 1
    uniform: Any  # subtracted in every column
    hot: Any  # subtracted at the label
    label_s: Any  # the gradients at the label, if it is split off
    label_t: Any


@triton.jit
def _over(x, z, SPLITS: tl.constexpr):
    # If no other class has probability, the exponentials are all 0 and must stay 0.
    if SPLITS:
        return tl.where(z == 0.0, 0.0, x / z)
    else:
        return x / z


@triton.jit
def row_of(found, cross_shift, scales, DIVERGENCE: tl.constexpr):
    """``(Row, Statistics)``, with the sums of powers, if there are any, relative to the row's shifts."""
    SPLITS: tl.constexpr = splits_label(DIVERGENCE)
    shift_s, shift_t = shared_shifts(found.shift_s, found.shift_t, scales, reads_teacher(DIVERGENCE))
    shifts = shifts_of(shift_s, shift_t, found.shift_1, scales)
    z_s = found.z_s * tl.exp2((found.shift_s - shift_s) * scales.c_s)
    z_t = found.z_t * tl.exp2((found.shift_t - shift_t) * scales.c_t)
    # The sums of the exponentials as the sweeps compute them.
    swept_s, swept_t = z_s * tl.exp2(shifts.rest_s), z_t * tl.exp2(shifts.rest_t)
    scale_cross, scale_p, scale_q = 0.0, 0.0, 0.0
    log_const = log_quotient(z_s, z_t)
    if has_cross(DIVERGENCE):
        power = scales.a + scales.b
        z_s, log_const = swept_s, log_quotient(swept_s, swept_t)
        stream_0, stream_1, stream_2 = moved_streams(found, shift_s, shift_t, scales, DIVERGENCE)
        stream_0 *= tl.exp2(power * shifts.rest_s + scales.a * (shifts.rest_t - shifts.rest_s))
        if DIVERGENCE == "alpha_beta":
            stream_1 *= tl.exp2(power * shifts.rest_t)
            stream_2 *= tl.exp2(power * shifts.rest_s)
            # One common factor, so that equal sums stay equal.
            between = log_const * (1.0 / LN2)
            scale_q = tl.exp2(0.0 - power * tl.log2(z_s))
            scale_p = scale_q * tl.exp2(power * between)
            scale_cross = scale_q * tl.exp2(cross_shift + scales.a * between)
        else:
            scale_cross = tl.where(stream_0 > 0.0, 1.0 / stream_0, 0.0)
        found = with_powers(found, stream_0, stream_1, stream_2)
    ratio = _over(swept_t, swept_s, SPLITS)
    row = Row(
        shifts, z_s, _over(1.0, swept_s, SPLITS), _over(1.0, swept_t, SPLITS), ratio,
        tl.maximum(TINY, TINY / ratio), log_const, log_const - shifts.offset * scales.to_nats,
        cross_shift, scale_cross, scale_p, scale_q,
    )  # fmt: skip
    return row, found


@triton.jit
def entry(s, t, row, scales, TEACHER: tl.constexpr):
    e = raw_entry(s, t, row.shifts, scales, TEACHER)
    return Entry(
        e.xs, e.xt, e.es, e.et, e.relative, e.et * row.inverse_t, e.es * row.inverse_s,
        fma(e.es, row.ratio, 0.0 - e.et),
        fma(e.es, row.ratio, e.et),
        fma(e.relative, scales.to_nats, row.log_base),
    )  # fmt: skip


@triton.jit
def _add(rows, s, t, sum_0, sum_1, row, scales, DIVERGENCE: tl.constexpr):
    """The sums with those of a stripe of logits added."""
    s, t = lower(rows, widen(s), widen(t))
    return sums(sum_0, sum_1, entry(s, t, row, scales, True), row, scales, DIVERGENCE)


@triton.jit
def row_sums(
    rows, stripe, row, scales,
    DIVERGENCE: tl.constexpr, REPEAT: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The sums over the row, for a divergence that has some."""
    STRIPE: tl.constexpr = LANES * WIDTH
    TILE: tl.constexpr = REPEAT * STRIPE
    sum_0 = tl.zeros([LANES, WIDTH], tl.float32)
    sum_1 = tl.zeros([LANES, WIDTH], tl.float32)
    full, lead = edges(rows.begin, rows.end, TILE)
    # Backwards, since a cache still holds what the sweep before read last.
    count = lead * REPEAT + tl.cdiv(rows.end - full * TILE, STRIPE)
    for edge in range(count):
        first = tl.where(edge < lead * REPEAT, edge, edge + (full - lead) * REPEAT) * STRIPE
        s, t = load_sides(rows, first + stripe, True, True)
        sum_0, sum_1 = _add(rows, s, t, sum_0, sum_1, row, scales, DIVERGENCE)
    for i in range(lead, full):
        loaded = load_stripes(rows, (full - 1 - i + lead) * TILE, stripe, STRIPE, REPEAT, True)
        for k in tl.static_range(REPEAT):
            sum_0, sum_1 = _add(rows, loaded[k][0], loaded[k][1], sum_0, sum_1, row, scales, DIVERGENCE)
    sum_0, sum_1 = tl.sum(tl.sum(sum_0, axis=1), axis=0), tl.sum(tl.sum(sum_1, axis=1), axis=0)
    return normalised_sums(sum_0, sum_1, row, DIVERGENCE)


@triton.jit
def _distant_entry(rows, first, stripe, row, scales):
    s, t = load_sides(rows, first + stripe, True, True)
    s, t = lower(rows, widen(s), widen(t))
    return entry(s, t, row, scales, True)


@triton.jit
def row_distant_sums(rows, stripe, row, scales, LANES: tl.constexpr, WIDTH: tl.constexpr):
    """The logarithms to base 2 of ``distant_sums`` over the row. This is rare, so every stripe has a mask."""
    tops = tl.full([LANES, WIDTH], NEG_INF, tl.float32)
    for first in range(0, rows.end, LANES * WIDTH):
        e = _distant_entry(rows, first, stripe, row, scales)
        tops = tl.maximum(tops, exists(e, distant_exponent(e, row), NEG_INF))
    top = tl.max(tl.max(tops, axis=1), axis=0)
    shift = tl.where(top == NEG_INF, 0.0, top)
    sum_0 = tl.zeros([LANES, WIDTH], tl.float32)
    sum_1 = tl.zeros([LANES, WIDTH], tl.float32)
    for first in range(0, rows.end, LANES * WIDTH):
        e = _distant_entry(rows, first, stripe, row, scales)
        sum_0, sum_1 = distant_sums(sum_0, sum_1, e, row, shift)
    sum_0, sum_1 = tl.sum(tl.sum(sum_0, axis=1), axis=0), tl.sum(tl.sum(sum_1, axis=1), axis=0)
    return tl.log2(sum_0) + shift, tl.log2(sum_1) + shift


@triton.jit
def _tile_gradients(
    rows, outputs, first, tile, row, constants, factors, scales,
    DIVERGENCE: tl.constexpr, UNIT: tl.constexpr, CE: tl.constexpr, SMOOTHING: tl.constexpr,
    POWER: tl.constexpr, TILE: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    TEACHER: tl.constexpr = reads_teacher(DIVERGENCE)
    SPLITS: tl.constexpr = splits_label(DIVERGENCE)
    columns = first + tile
    s, t = load_sides(rows, columns, TEACHER, MASKED)
    s, t = widen_sides(rows, columns, s, t, SPLITS)
    s, t = lower(rows, s, t)
    e = entry(s, t, row, scales, TEACHER)
    g_s = tl.zeros_like(s)
    g_t = tl.zeros_like(s)
    if TEACHER:
        d_s, d_t = gradients(e, constants, row, scales, DIVERGENCE)
        unit_s, unit_t = gradient_units(row, DIVERGENCE)
        g_s = (factors.kd_s * unit_s) * d_s
        g_t = (factors.kd_t * unit_t) * d_t
    elif DIVERGENCE == "off_support":
        g_s = factors.kd_s * e.q
    # All in float32: rounded once, by the store.
    if outputs.student is not None:
        if UNIT:
            g_s = fma(unit_exp(e.es, s, row.shifts, POWER), factors.unit, g_s)
        if SMOOTHING:
            g_s -= factors.uniform
        if CE or SPLITS:  # noqa: SIM102
            # Only one tile has the label; the others skip two instructions per element.
            if (rows.label >= first) & (rows.label < first + TILE):
                at_label = factors.label_s if SPLITS else g_s - factors.hot
                g_s = tl.where(columns == rows.label, at_label, g_s)
        store_tile(outputs.student, columns, outputs.s_stride, rows.begin, rows.end, g_s, MASKED)
    if outputs.teacher is not None:
        if SPLITS:
            g_t = tl.where(columns == rows.label, factors.label_t, g_t)
        store_tile(outputs.teacher, columns, outputs.t_stride, rows.begin, rows.end, g_t, MASKED)


@triton.jit
def row_gradients(
    rows, outputs, tile, row, constants, factors, scales,
    DIVERGENCE: tl.constexpr, UNIT: tl.constexpr, CE: tl.constexpr, SMOOTHING: tl.constexpr,
    POWER: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The last sweep, which writes the gradients.

    A gradient may share its logits' memory: a tile is read before it is written, and only by this program.
    """
    full, lead = edges(rows.begin, rows.end, TILE)
    for k in range(lead + (full * TILE < rows.end).to(tl.int32)):
        _tile_gradients(
            rows, outputs, tl.where(k < lead, 0, full) * TILE, tile, row, constants, factors, scales,
            DIVERGENCE, UNIT, CE, SMOOTHING, POWER, TILE, True,
        )  # fmt: skip
    for i in range(lead, full):
        # Against the direction of the sweep before, since a cache still holds what that one read last.
        index = i if has_sums(DIVERGENCE) else full - 1 - i + lead
        _tile_gradients(
            rows, outputs, index * TILE, tile, row, constants, factors, scales,
            DIVERGENCE, UNIT, CE, SMOOTHING, POWER, TILE, False,
        )  # fmt: skip


@triton.jit
def gradients_near_or_distant(
    rows, outputs, tile, row, constants, factors, scales, distant,
    DIVERGENCE: tl.constexpr, UNIT: tl.constexpr, CE: tl.constexpr, SMOOTHING: tl.constexpr,
    POWER: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """``row_gradients`` of ``log_acceptance``, whose distant rows have formulas of their own."""
    if distant:
        row_gradients(
            rows, outputs, tile, row, constants, factors, scales,
            "distant_acceptance", UNIT, CE, SMOOTHING, POWER, TILE,
        )  # fmt: skip
    else:
        row_gradients(
            rows, outputs, tile, row, constants, factors, scales,
            DIVERGENCE, UNIT, CE, SMOOTHING, POWER, TILE,
        )  # fmt: skip
