"""What happens between the fused forward, which already has the gradient, and the backward."""

from __future__ import annotations

import torch
from torch import Tensor

try:  # private, so its absence only costs memory
    from torch._C._autograd import _get_current_graph_task_keep_graph as _keeps_graph
except ImportError:

    def _keeps_graph() -> bool:
        return True


def times_upstream(grad: Tensor, factor: Tensor, backend: str | None) -> Tensor:
    """``grad * factor`` row by row; ``factor`` is ``(rows,)`` over ``grad``'s flattened leading shape.

    The stored gradient may be overwritten when this backward is its last reader; with
    ``retain_graph=True`` it is copied, so that a second backward does not rescale twice.
    """
    if torch.compiler.is_compiling() or _keeps_graph():
        return torch.ops.fastkd.scale_rows(grad, factor, backend)
    torch.ops.fastkd.scale_rows_(grad, factor, backend)
    return grad
