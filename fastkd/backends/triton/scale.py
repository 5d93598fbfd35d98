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
    *("factor", "rows", "inner", "factor_stride"),
    *("grad_outer", "grad_inner", "out_outer", "out_inner"),
]


@triton.jit(do_not_specialize=UNSPECIALISED)
def scale_rows_kernel(
    grad, factor, out, rows, inner, factor_stride, grad_outer, grad_inner, out_outer, out_inner, columns,
    IN_PLACE: tl.constexpr, PHASED: tl.constexpr, WIDE: tl.constexpr, WIDE_OUT: tl.constexpr,
    REPEAT: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """``out[row] = grad[row] * factor[row]``; in place, a row whose factor is 1 is not touched.

    ``grad_outer, ..., out_inner``: strides, in elements, of the two dimensions of rows.
    ``PHASED, WIDE*``: as in ``dense_rows_kernel``.
    """
    TILE: tl.constexpr = REPEAT * LANES * WIDTH
    tile = tile_columns(REPEAT, LANES, WIDTH)
    # The upstream gradient is usually one number, and 1, but the host would have to wait to know.
    if IN_PLACE and factor_stride == 0:
        rows = tl.where(tl.load(factor) == 1.0, 0, rows)
    for index in range(tl.program_id(0), rows, tl.num_programs(0)):
        row = tl.cast(index, tl.int64)
        scale = tl.load(factor + row * factor_stride).to(tl.float32)
        skip = IN_PLACE and scale == 1.0
        if not skip:
            begin = 0
            if PHASED:
                begin = (row_offset(row, inner, grad_outer, grad_inner) % WIDTH).to(tl.int32)
            end = begin + columns
            of_grad = row_pointer(grad, row, inner, grad_outer, grad_inner, 1, begin, WIDE, WIDTH)
            of_out = row_pointer(out, row, inner, out_outer, out_inner, 1, begin, WIDE_OUT, WIDTH)
            full, lead = edges(begin, end, TILE)
            for i in range(lead, full):
                x = widen(load_tile(of_grad, i * TILE + tile, 1, begin, end, False))
                store_tile(of_out, i * TILE + tile, 1, begin, end, x * scale, False)
            for k in range(lead + (full * TILE < end).to(tl.int32)):
                edge = tl.where(k < lead, 0, full) * TILE + tile
                x = widen(load_tile(of_grad, edge, 1, begin, end, True))
                store_tile(of_out, edge, 1, begin, end, x * scale, True)
