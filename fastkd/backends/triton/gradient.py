"""The sweeps over one row pair whose log-sum-exps are known: sums that need them, and the gradients."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from fastkd.backends.triton.arithmetic import LN2, log_quotient
from fastkd.backends.triton.divergences import (
    Entry,
    Row,
    gradients,
    has_cross,
    has_sums,
    reads_teacher,
    splits_label,
    sums,
)
from fastkd.backends.triton.statistics import moved_streams, raw_entry, unit_exp, with_powers
from fastkd.backends.triton.tiles import finite_shift, load_sides, offset_between, store_tile


class Outputs(NamedTuple):
    """Where the gradients go: pointers to column 0, or None."""

    student: Any
    teacher: Any
    s_stride: Any
    t_stride: Any


class Factors(NamedTuple):
    """What the gradient is made of, ``grad_scale`` and weights included."""

    kd_s: Any  # of dD/d(s/T) and dD/d(t/T_t)
    kd_t: Any
    unit: Any  # of the exponential at temperature 1
    uniform: Any  # less, everywhere
    hot: Any  # less, at the label
    label_s: Any  # at the label instead of all others, where it is split off
    label_t: Any


@triton.jit
def shared_shifts(max_s, max_t, c_s, c_t):
    """What to subtract from the logits of each row before the exponential.

    At equal temperatures both rows take the larger maximum unless the maxima lie far apart (16 powers of
    two), so that equal logits give bitwise equal exponentials and ``q - p`` keeps its digits.
    """
    share = (c_s == c_t) & (tl.abs(max_s - max_t) * c_s < 16.0)
    larger = tl.maximum(max_s, max_t)
    return tl.where(share, larger, max_s), tl.where(share, larger, max_t)


@triton.jit
def _inverse(z, SPLITS: tl.constexpr):
    # Without any others their exponentials are all 0 and shall stay so.
    if SPLITS:
        return tl.where(z == 0.0, 0.0, 1.0 / z)
    else:
        return 1.0 / z


@triton.jit
def row_of(found, cross_shift, scales, DIVERGENCE: tl.constexpr):
    """``(Row, Statistics)``: the sums of powers, if there are some, relative to the shifts of the row."""
    shift_s, shift_t = finite_shift(found.max_s), finite_shift(found.max_t)
    z_s, z_t = found.z_s, found.z_t
    if reads_teacher(DIVERGENCE):
        shift_s, shift_t = shared_shifts(shift_s, shift_t, scales.c_s, scales.c_t)
        z_s *= tl.exp2((found.max_s - shift_s) * scales.c_s)
        z_t *= tl.exp2((found.max_t - shift_t) * scales.c_t)
    scale_cross, scale_p, scale_q = 0.0, 0.0, 0.0
    log_const = log_quotient(z_s, z_t)
    if has_cross(DIVERGENCE):
        stream_0, stream_1, stream_2 = moved_streams(found, shift_s, shift_t, scales, DIVERGENCE)
        found = with_powers(found, stream_0, stream_1, stream_2)
        if DIVERGENCE == "alpha_beta":
            # One factor for all, so that equal sums stay equal.
            power, between = scales.a + scales.b, log_const * (1.0 / LN2)
            scale_q = tl.exp2(0.0 - power * tl.log2(z_s))
            scale_p = scale_q * tl.exp2(power * between)
            scale_cross = scale_q * tl.exp2(cross_shift + scales.a * between)
        else:
            scale_cross = tl.where(stream_0 > 0.0, 1.0 / stream_0, 0.0)
    inverse_s = _inverse(z_s, splits_label(DIVERGENCE))
    inverse_t = _inverse(z_t, splits_label(DIVERGENCE))
    row = Row(
        shift_s, shift_t, z_s, inverse_s, inverse_t, log_const, cross_shift, scale_cross, scale_p, scale_q
    )
    return row, found


@triton.jit
def entry(s, t, row, offset, scales, TEACHER: tl.constexpr):
    e = raw_entry(s, t, row.shift_s, row.shift_t, offset, scales, TEACHER)
    log_ratio = tl.fma(e.relative, scales.to_nats, row.log_const)
    return Entry(e.xs, e.xt, e.es, e.et, e.relative, e.et * row.inverse_t, e.es * row.inverse_s, log_ratio)


@triton.jit
def _tile_sums(rows, first, tile, row, scales, DIVERGENCE: tl.constexpr, MASKED: tl.constexpr):
    s, t = load_sides(rows, first + tile, True, False, MASKED)
    e = entry(s, t, row, offset_between(row.shift_s, row.shift_t, scales), scales, True)
    return sums(e, scales, DIVERGENCE)


@triton.jit
def row_sums(rows, tile, row, scales, DIVERGENCE: tl.constexpr, LANES: tl.constexpr, TILE: tl.constexpr):
    """The sums over the row of a divergence that has some."""
    sum_0 = tl.zeros([LANES], tl.float32)
    sum_1 = tl.zeros([LANES], tl.float32)
    # Backwards: what the sweep before read last is what a cache still holds.
    full = rows.vocab // TILE
    if full * TILE < rows.vocab:
        here_0, here_1 = _tile_sums(rows, full * TILE, tile, row, scales, DIVERGENCE, True)
        sum_0 += here_0
        sum_1 += here_1
    for i in range(full):
        here_0, here_1 = _tile_sums(rows, (full - 1 - i) * TILE, tile, row, scales, DIVERGENCE, False)
        sum_0 += here_0
        sum_1 += here_1
    return tl.sum(sum_0, axis=0), tl.sum(sum_1, axis=0)


@triton.jit
def _tile_gradients(
    rows, outputs, first, tile, row, constants, factors, unit_shift, scales,
    DIVERGENCE: tl.constexpr, UNIT: tl.constexpr, CE: tl.constexpr, POWER: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    TEACHER: tl.constexpr = reads_teacher(DIVERGENCE)
    SPLITS: tl.constexpr = splits_label(DIVERGENCE)
    columns = first + tile
    s, t = load_sides(rows, columns, TEACHER, SPLITS, MASKED)
    e = entry(s, t, row, offset_between(row.shift_s, row.shift_t, scales), scales, TEACHER)
    g_s = tl.zeros_like(s)
    g_t = tl.zeros_like(s)
    if TEACHER:
        d_s, d_t = gradients(e, constants, row, scales, DIVERGENCE)
        g_s = factors.kd_s * d_s
        g_t = factors.kd_t * d_t
    elif DIVERGENCE == "off_support":
        g_s = factors.kd_s * e.q
    # All in float32: rounded once, by the store.
    if outputs.student is not None:
        if UNIT:
            g_s = tl.fma(unit_exp(e.es, s - unit_shift, POWER), factors.unit, g_s)
        if CE:
            g_s -= factors.uniform
        if SPLITS:
            g_s = tl.where(columns == rows.label, factors.label_s, g_s)
        elif CE:
            g_s = tl.where(columns == rows.label, g_s - factors.hot, g_s)
        store_tile(outputs.student, columns, outputs.s_stride, rows.vocab, g_s, MASKED)
    if outputs.teacher is not None:
        if SPLITS:
            g_t = tl.where(columns == rows.label, factors.label_t, g_t)
        store_tile(outputs.teacher, columns, outputs.t_stride, rows.vocab, g_t, MASKED)


@triton.jit
def row_gradients(
    rows, outputs, tile, row, constants, factors, unit_shift, scales,
    DIVERGENCE: tl.constexpr, UNIT: tl.constexpr, CE: tl.constexpr, POWER: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The last sweep.

    A gradient may lie in its logits' memory: a tile is read before it is written, and by nobody else.
    """
    full = rows.vocab // TILE
    if full * TILE < rows.vocab:
        _tile_gradients(
            rows, outputs, full * TILE, tile, row, constants, factors, unit_shift, scales,
            DIVERGENCE, UNIT, CE, POWER, True,
        )  # fmt: skip
    for i in range(full):
        # Against the direction of the sweep before: what that one read last, a cache still holds.
        index = i if has_sums(DIVERGENCE) else full - 1 - i
        _tile_gradients(
            rows, outputs, index * TILE, tile, row, constants, factors, unit_shift, scales,
            DIVERGENCE, UNIT, CE, POWER, False,
        )  # fmt: skip
