"""Tiles of one row: how its columns are spread over threads, loaded, reduced and cleared.

A tile is a ``[REPEAT, LANES, WIDTH]`` block of consecutive columns. With one thread per lane, a
thread holds ``WIDTH`` neighbours (one 16-byte access) in each of ``REPEAT`` stripes, so sums over axes
0 and 2 stay inside the thread: a sweep keeps one running value per thread and meets the other threads
only once, at its end.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

NEG_INF = tl.constexpr(float("-inf"))


class Rows(NamedTuple):
    """The two rows of a program, as it reads them."""

    student: Any  # pointers to column 0; without a teacher the second is that of the student
    teacher: Any
    s_stride: Any
    t_stride: Any
    vocab: Any
    label: Any  # int32, the label's column; -1 where it is not here


@triton.jit
def tile_columns(REPEAT: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr):
    """int32 ``[REPEAT, LANES, WIDTH]``: the columns of the tile that starts at column 0."""
    stripe = tl.arange(0, REPEAT)[:, None, None] * (LANES * WIDTH)
    lane = tl.arange(0, LANES)[None, :, None] * WIDTH
    return stripe + lane + tl.arange(0, WIDTH)[None, None, :]


@triton.jit
def row_pointer(base, row, inner, outer_stride, inner_stride):
    """Pointer to column 0 of ``row`` of a 3-D tensor; ``row`` is int64, so no product overflows."""
    return base + (row // inner) * outer_stride + (row % inner) * inner_stride


@triton.jit
def load_tile(pointer, columns, stride, limit, MASKED: tl.constexpr):
    """float32 logits of ``columns``; -inf at or past ``limit``."""
    offsets = columns.to(tl.int64) * stride
    if MASKED:
        x = tl.load(pointer + offsets, mask=columns < limit, other=NEG_INF)
    else:
        x = tl.load(pointer + offsets)
    return x.to(tl.float32)


@triton.jit
def load_sides(rows, columns, TEACHER: tl.constexpr, SPLITS: tl.constexpr, MASKED: tl.constexpr):
    """``(student, teacher)`` logits; the label's are -inf where the divergence SPLITS it off."""
    s = load_tile(rows.student, columns, rows.s_stride, rows.vocab, MASKED)
    t = s
    if TEACHER:
        t = load_tile(rows.teacher, columns, rows.t_stride, rows.vocab, MASKED)
    if SPLITS:
        s = tl.where(columns == rows.label, NEG_INF, s)
        t = tl.where(columns == rows.label, NEG_INF, t)
    return s, t


@triton.jit
def store_tile(pointer, columns, stride, limit, x, MASKED: tl.constexpr):
    """Round float32 ``x`` to the pointer's dtype, once, and store it."""
    offsets = columns.to(tl.int64) * stride
    x = x.to(pointer.dtype.element_ty)
    if MASKED:
        tl.store(pointer + offsets, x, mask=columns < limit)
    else:
        tl.store(pointer + offsets, x)


@triton.jit
def clear_columns(pointer, first, last, stride, tile, TILE: tl.constexpr):
    """Store 0 in the columns ``[first, last)``."""
    zero = tl.zeros_like(tile).to(tl.float32)
    full = (last - first) // TILE
    for i in range(full):
        store_tile(pointer, first + i * TILE + tile, stride, last, zero, False)
    store_tile(pointer, first + full * TILE + tile, stride, last, zero, True)


@triton.jit
def lane_sum(x):
    """``[LANES]``: the sum of a tile inside each lane."""
    return tl.sum(tl.sum(x, axis=2), axis=0)


@triton.jit
def lane_max(x):
    """``[LANES]``: the maximum of a tile inside each lane."""
    return tl.max(tl.max(x, axis=2), axis=0)


@triton.jit
def lane_min(x):
    """``[LANES]``: the minimum of a tile inside each lane."""
    return tl.min(tl.min(x, axis=2), axis=0)


@triton.jit
def finite_shift(maximum):
    """The maximum as something to subtract: where all is -inf, 0, so that ``-inf - shift`` stays -inf."""
    return tl.where(maximum == NEG_INF, 0.0, maximum)


@triton.jit
def offset_between(shift_s, shift_t, scales):
    """What to subtract from ``t T / T_t - s`` so that it is relative to both shifts."""
    return tl.fma(shift_t, scales.temperatures, 0.0 - shift_s)
