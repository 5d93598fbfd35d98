"""Tiles of one row: how its columns are spread over threads, loaded, stored and cleared.

A tile is a ``[REPEAT, LANES, WIDTH]`` block of consecutive columns: ``REPEAT`` stripes, in each of which a
lane, one thread, holds ``WIDTH`` neighbours (one 16-byte access). Each place of a stripe has its own sums, so
a sweep adds with one instruction per element, and threads synchronise only once, at its end.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from fastkd.backends.triton.arithmetic import fma
from fastkd.backends.triton.compile_time import constant

NEG_INF = constant(float("-inf"))


class Rows(NamedTuple):
    """The two rows of a program, as it reads them. Columns are counted from the last 16-byte boundary before
    the row, so that wide accesses suit rows of an odd vocabulary, too: the vocabulary is ``[begin, end)``."""

    student: Any  # pointers to column 0; without a teacher the second is that of the student
    teacher: Any
    s_stride: Any
    t_stride: Any
    begin: Any  # less than the width of an access; the constant 0 if rows begin on boundaries
    end: Any
    label_column: Any  # int32; -1 where the label is not here
    origin_s: Any  # float32, subtracted from every logit of the side after it is widened
    origin_t: Any


@triton.jit
def lowered_by(rows, origin_s, origin_t):
    """``rows`` with other origins."""
    return Rows(
        rows.student, rows.teacher, rows.s_stride, rows.t_stride, rows.begin, rows.end, rows.label_column,
        origin_s, origin_t,
    )  # fmt: skip


@triton.jit
def tile_columns(REPEAT: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr):
    """int32 ``[REPEAT, LANES, WIDTH]``: the columns of the tile that starts at column 0."""
    stripe = tl.arange(0, REPEAT)[:, None, None] * (LANES * WIDTH)
    lane = tl.arange(0, LANES)[None, :, None] * WIDTH
    return stripe + lane + tl.arange(0, WIDTH)[None, None, :]


@triton.jit
def stripe_columns(LANES: tl.constexpr, WIDTH: tl.constexpr):
    """int32 ``[LANES, WIDTH]``: the columns of the stripe that starts at column 0."""
    return tl.arange(0, LANES)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]


@triton.jit
def row_offset(row, inner, outer_stride, inner_stride):
    """The offset of ``row`` in a 3-D tensor, in elements; ``row`` is int64, so no product overflows."""
    return (row // inner) * outer_stride + (row % inner) * inner_stride


@triton.jit
def row_pointer(
    base, row, inner, outer_stride, inner_stride, stride, begin, WIDE: tl.constexpr, WIDTH: tl.constexpr
):
    """Pointer to column 0 of ``row``, whose vocabulary begins at column ``begin``. ``WIDE``: the host has
    checked that the pointer is a multiple of ``WIDTH`` elements away from ``base``."""
    offset = row_offset(row, inner, outer_stride, inner_stride) - tl.cast(begin, tl.int64) * stride
    if WIDE:
        offset = offset // WIDTH * WIDTH  # the same value, but now the compiler knows
    return base + offset


@triton.jit
def edges(begin, end, TILE: tl.constexpr):
    """``(full, lead)`` of the tiles that contain a row's columns. The tiles before ``full`` have no other
    columns, except that the first one begins before the row if ``lead`` is 1."""
    full = end // TILE
    lead = ((begin > 0) & (full > 0)).to(tl.int32)
    return full, lead


@triton.jit
def widen(x):
    """To float32, of which a bfloat16 is the upper half: as integers, a pair costs a shift and a mask."""
    if x.dtype == tl.bfloat16:
        return (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        return x.to(tl.float32)


@triton.jit
def load_tile(pointer, columns, stride, begin, end, MASKED: tl.constexpr):
    """Logits of ``columns``; -inf outside ``[begin, end)``."""
    offsets = columns.to(tl.int64) * stride
    if MASKED:
        return tl.load(pointer + offsets, mask=(columns >= begin) & (columns < end), other=NEG_INF)
    else:
        return tl.load(pointer + offsets)


@triton.jit
def load_sides(rows, columns, TEACHER: tl.constexpr, MASKED: tl.constexpr):
    """``(student, teacher)`` logits as stored in memory. Converting them would wait for the loads, so callers
    do that later, after they have issued all loads of a tile."""
    s = load_tile(rows.student, columns, rows.s_stride, rows.begin, rows.end, MASKED)
    t = s
    if TEACHER:
        t = load_tile(rows.teacher, columns, rows.t_stride, rows.begin, rows.end, MASKED)
    return s, t


@triton.jit
def load_stripes(rows, first, stripe, STRIPE: tl.constexpr, REPEAT: tl.constexpr, TEACHER: tl.constexpr):
    """A tuple of the results of ``load_sides`` for ``REPEAT`` stripes."""
    loaded = ()
    for k in tl.static_range(REPEAT):
        loaded += (load_sides(rows, first + k * STRIPE + stripe, TEACHER, False),)  # type: ignore[assignment]
    return loaded


@triton.jit
def widen_sides(rows, columns, s, t, SPLITS: tl.constexpr):
    """float32 ``(student, teacher)`` logits; the label's are -inf where the divergence SPLITS it off."""
    s, t = widen(s), widen(t)
    if SPLITS:
        s = tl.where(columns == rows.label_column, NEG_INF, s)
        t = tl.where(columns == rows.label_column, NEG_INF, t)
    return s, t


@triton.jit
def lower(rows, s, t):
    """``(student, teacher)`` logits minus the row's origins, as the sweeps use them."""
    return s - rows.origin_s, t - rows.origin_t


@triton.jit
def store_tile(pointer, columns, stride, begin, end, x, MASKED: tl.constexpr):
    """Round float32 ``x`` to the pointer's dtype, once, and store it."""
    offsets = columns.to(tl.int64) * stride
    x = x.to(pointer.dtype.element_ty)
    if MASKED:
        tl.store(pointer + offsets, x, mask=(columns >= begin) & (columns < end))
    else:
        tl.store(pointer + offsets, x)


@triton.jit
def clear_columns(pointer, begin, end, stride, tile, TILE: tl.constexpr):
    """Store 0 in the columns ``[begin, end)``."""
    if begin < end:
        zero = tl.zeros_like(tile).to(tl.float32)
        head, tail = begin // TILE, end // TILE
        for i in range(head, tail + 1, tl.maximum(tail - head, 1)):
            store_tile(pointer, i * TILE + tile, stride, begin, end, zero, True)
        for i in range(head + 1, tail):
            store_tile(pointer, i * TILE + tile, stride, begin, end, zero, False)


@triton.jit
def row_total(x):
    """The sum over all places of a stripe."""
    return tl.sum(tl.sum(x, axis=1), axis=0)


@triton.jit
def finite_shift(maximum):
    """The maximum as a shift: 0 if all logits are -inf, so that ``-inf - shift`` stays -inf."""
    return tl.where(maximum == NEG_INF, 0.0, maximum)


@triton.jit
def offset_between(shift_s, shift_t, scales):
    """The number to subtract from ``t T / T_t - s`` so that it is relative to both shifts, in logits."""
    return fma(shift_t, scales.temperatures, 0.0 - shift_s)
