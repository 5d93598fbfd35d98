"""Tiles of one row: how its columns are spread over threads, loaded, reduced and cleared.

A tile is a ``[REPEAT, LANES, WIDTH]`` block of consecutive columns. With one thread per lane, a
thread holds ``WIDTH`` neighbours (one 16-byte access) in each of ``REPEAT`` stripes, so sums over axes
0 and 2 stay inside the thread: a sweep keeps one running value per thread and meets the other threads
only once, at its end.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
NEG_INF = tl.constexpr(float("-inf"))


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
def finite_shift(maximum):
    """The maximum as something to subtract: where all is -inf, 0, so that ``-inf - shift`` stays -inf."""
    return tl.where(maximum == NEG_INF, 0.0, maximum)
