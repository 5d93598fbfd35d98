"""Launches the kernels around that of the loss: weights before it, sums after it, the backward's factors."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from fastkd.backends.base import Weighing
from fastkd.backends.triton import host
from fastkd.backends.triton.reduction import row_weights_kernel, totals_kernel
from fastkd.backends.triton.scale import scale_rows_kernel
from fastkd.backends.triton.shapes import SCALE, TOTALS, WEIGHTS
from fastkd.spec import METRICS

METRICS_PLACES = triton.next_power_of_2(len(METRICS))
# Programs that scale gradients: a few times what any GPU runs at once, since each ends after one number where
# nothing is to be scaled.
SCALE_PROGRAMS = 4096


def scale_rows(grad: Tensor, factor: Tensor, out: Tensor) -> None:
    """See ``Backend.scale_rows``."""
    columns = grad.shape[2]
    if grad.numel() == 0:
        return
    result = host.Rounded(out)
    assert result.buffer is not None
    strides = {"": host.strides_of(grad), "_OUT": host.strides_of(result.buffer)}
    assert strides[""][2] == strides["_OUT"][2] == 1, "a row is not contiguous"
    with host.on(grad.device):
        scale_rows_kernel[(min(factor.numel(), SCALE_PROGRAMS),)](
            grad,
            factor,
            result.buffer,
            factor.numel(),
            grad.shape[1],
            factor.stride(0),
            *strides[""][:2],
            *strides["_OUT"][:2],
            columns,
            IN_PLACE=result.buffer is grad,
            **host.alignment(16 // grad.element_size(), columns, strides),
            **SCALE.tile(grad.element_size()),
            **host.options_here(SCALE),
        )
    result.finish()


def row_weights(given: Weighing) -> Tensor:
    """See ``Backend.row_weights``."""
    weights = torch.empty(given.tokens, dtype=given.dtype, device=given.device)
    if given.tokens == 0:
        return weights
    divisor, token_weights = given.divisor, given.token_weights
    factor, items = 0.0, None
    if isinstance(divisor, Tensor):
        items = divisor
    elif divisor is not None and divisor != 0:
        factor = 1.0 / divisor
    alone = divisor is None
    with host.on(given.device):
        row_weights_kernel[(1 if alone else triton.cdiv(given.tokens, WEIGHTS.elements),)](
            given.labels,
            _without_bool(token_weights),
            _without_bool(items),
            weights,
            given.tokens,
            given.ignore_index,
            factor,
            SUM=alone,
            BLOCK=WEIGHTS.elements,
            **host.options_here(WEIGHTS),
        )
    return weights


def _without_bool(x: Tensor | None) -> Tensor | None:
    return x.view(torch.uint8) if x is not None and x.dtype == torch.bool else x


def totals(
    row_loss: Tensor | None, metrics: Tensor | None, loss_scale: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """See ``Backend.totals``."""
    loss = None if row_loss is None else loss_scale.new_empty(())
    means = None if metrics is None else metrics.new_empty(len(METRICS) + 1)
    with host.on(loss_scale.device):
        totals_kernel[(1,)](
            row_loss,
            metrics,
            loss_scale,
            loss,
            means,
            loss_scale.numel(),
            BLOCK=TOTALS.elements,
            COLUMNS=METRICS_PLACES,
            **host.options_here(TOTALS),
        )
    return loss, means
