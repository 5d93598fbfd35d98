"""The small kernels around that of the loss: the weights of the tokens before it, and the sums after it."""

from __future__ import annotations

import triton
import triton.language as tl

from fastkd.backends.triton.metrics import COUNT

# Their values change from call to call and must not select a compiled variant.
UNSPECIALISED = ["rows", "ignore_index"]


@triton.jit
def _weights(labels, token_weights, rows, ignore_index, row):
    """The weights of these rows before the division; 0 beyond the last row."""
    exists = row < rows
    found = tl.where(exists, 1.0, 0.0)
    if token_weights is not None:
        found = tl.load(token_weights + row, mask=exists, other=0).to(tl.float32)
    if labels is not None:
        found = tl.where(tl.load(labels + row, mask=exists, other=0) == ignore_index, 0.0, found)
    return found


@triton.jit(do_not_specialize=UNSPECIALISED)
def row_weights_kernel(
    labels, token_weights, items, weights, rows, ignore_index, factor,
    SUM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``weights[row]``, see ``Weighing``.

    - ``items``: the divisor, or None;
    - ``factor``: the factor of all weights if there is neither ``items`` nor ``SUM``;
    - ``SUM``: whether the divisor is the sum of the weights, for which there is one program only.
    """
    place = tl.arange(0, BLOCK)
    if SUM or (items is not None):
        if SUM:
            total = tl.zeros([BLOCK], tl.float32)
            for first in range(0, rows, BLOCK):
                total += _weights(labels, token_weights, rows, ignore_index, first + place)
            divisor = tl.sum(total, axis=0)
        else:
            divisor = tl.load(items).to(tl.float32)
        factor = tl.where(divisor == 0.0, 0.0, tl.div_rn(1.0, divisor))
    for first in range(tl.program_id(0) * BLOCK, rows, tl.num_programs(0) * BLOCK):
        row = first + place
        found = _weights(labels, token_weights, rows, ignore_index, row)
        tl.store(weights + row, found * factor, mask=row < rows)


@triton.jit(do_not_specialize=UNSPECIALISED[:1])
def totals_kernel(
    row_loss, metrics, loss_scale, loss, means, rows,
    BLOCK: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The sum of the rows' losses, and the means of their metrics with the number of rows behind them.

    One program: the sums of several would have to be added by another launch, or in any order. ``COLUMNS`` is
    a power of two of at least ``COUNT``.
    """
    place = tl.arange(0, BLOCK)
    column = tl.arange(0, COLUMNS)[None, :]
    total = tl.zeros([BLOCK], tl.float32)
    count = tl.zeros([BLOCK], tl.float32)
    sums = tl.zeros([BLOCK, COLUMNS], tl.float32)
    for first in range(0, rows, BLOCK):
        row = first + place
        exists = row < rows
        if row_loss is not None:
            total += tl.load(row_loss + row, mask=exists, other=0.0)
        if metrics is not None:
            count += tl.where(tl.load(loss_scale + row, mask=exists, other=0.0) != 0.0, 1.0, 0.0)
            here = exists[:, None] & (column < COUNT)
            sums += tl.load(metrics + row[:, None] * COUNT + column, mask=here, other=0.0)
    if row_loss is not None:
        tl.store(loss, tl.sum(total, axis=0))
    if metrics is not None:
        number = tl.sum(count, axis=0)
        mean = tl.div_rn(tl.sum(sums, axis=0), tl.maximum(number, 1.0))[None, :]
        tl.store(means + column, mean, mask=column < COUNT)
        tl.store(means + COUNT, number)
