"""The kernel that applies an upstream gradient to stored gradient rows."""

from __future__ import annotations

import triton
import triton.language as tl

from fastkd.backends.triton.tiles import load_tile, store_tile, tile_columns


@triton.jit
def scale_rows_kernel(
    grad, factor, out, grad_row, grad_stride, factor_stride, out_row, out_stride, columns,
    IN_PLACE: tl.constexpr, REPEAT: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """``out[row] = grad[row] * factor[row]``; in place, a row whose factor is 1 is not touched."""
    TILE: tl.constexpr = REPEAT * LANES * WIDTH
    row = tl.program_id(0).to(tl.int64)
    scale = tl.load(factor + row * factor_stride).to(tl.float32)
    # The usual upstream gradient is 1, and the host must not wait to find out.
    skip = IN_PLACE and scale == 1.0
    if not skip:
        grad += row * grad_row
        out += row * out_row
        tile = tile_columns(REPEAT, LANES, WIDTH)
        full = columns // TILE
        for i in range(full):
            x = load_tile(grad, i * TILE + tile, grad_stride, columns, False)
            store_tile(out, i * TILE + tile, out_stride, columns, x * scale, False)
        x = load_tile(grad, full * TILE + tile, grad_stride, columns, True)
        store_tile(out, full * TILE + tile, out_stride, columns, x * scale, True)
