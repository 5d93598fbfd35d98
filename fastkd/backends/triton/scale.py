"""The kernel that applies an upstream gradient to stored gradient rows."""

from __future__ import annotations

import triton
import triton.language as tl

from fastkd.backends.triton.tiles import (
    edges,
    load_tile,
    row_offset,
    row_pointer,
    store_tile,
    tile_columns,
    widen,
)

# Variants for special values of these would gain nothing.
UNSPECIALISED = [
    *("factor", "inner", "factor_stride"),
    *("grad_outer", "grad_inner", "out_outer", "out_inner"),
]


@triton.jit(do_not_specialize=UNSPECIALISED)
def scale_rows_kernel(
    grad, factor, out, inner, grad_outer, grad_inner, grad_stride, factor_stride,
    out_outer, out_inner, out_stride, columns,
    IN_PLACE: tl.constexpr, PHASED: tl.constexpr, WIDE: tl.constexpr, WIDE_OUT: tl.constexpr,
    REPEAT: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """``out[row] = grad[row] * factor[row]``; in place, a row whose factor is 1 is not touched.

    ``PHASED, WIDE*``: as in ``dense_rows_kernel``.
    """
    TILE: tl.constexpr = REPEAT * LANES * WIDTH
    row = tl.program_id(0).to(tl.int64)
    scale = tl.load(factor + row * factor_stride).to(tl.float32)
    # The upstream gradient is usually 1, but the host would have to wait to know.
    skip = IN_PLACE and scale == 1.0
    if not skip:
        begin = 0
        if PHASED:
            begin = (row_offset(row, inner, grad_outer, grad_inner) % WIDTH).to(tl.int32)
        end = begin + columns
        grad = row_pointer(grad, row, inner, grad_outer, grad_inner, grad_stride, begin, WIDE, WIDTH)
        out = row_pointer(out, row, inner, out_outer, out_inner, out_stride, begin, WIDE_OUT, WIDTH)
        tile = tile_columns(REPEAT, LANES, WIDTH)
        full, lead = edges(begin, end, TILE)
        for i in range(lead, full):
            x = widen(load_tile(grad, i * TILE + tile, grad_stride, begin, end, False))
            store_tile(out, i * TILE + tile, out_stride, begin, end, x * scale, False)
        for k in range(lead + (full * TILE < end).to(tl.int32)):
            edge = tl.where(k < lead, 0, full) * TILE + tile
            x = widen(load_tile(grad, edge, grad_stride, begin, end, True))
            store_tile(out, edge, out_stride, begin, end, x * scale, True)
