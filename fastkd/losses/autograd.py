"""The autograd functions of the losses: the forward pass computes the gradient, or the backward does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils import _pytree as pytree

from fastkd.backends import memory
from fastkd.losses.request import DIFFERENTIABLE, NO_GRADIENT, Inputs, Request
from fastkd.ops.namespace import OPS
from fastkd.ops.rows import wide

try:  # private in torch; without it gradients are copied, which only costs memory
    from torch._C._autograd import _get_current_graph_task_keep_graph as _keeps_graph
except ImportError:

    def _keeps_graph() -> bool:
        return True


# The None gradients of a function's other arguments: its settings come first, the tensors of the rows last.
SETTINGS = (None,) * 3
ROW_TENSORS = (None,) * (len(Inputs._fields) - DIFFERENTIABLE)
ARGUMENTS = len(SETTINGS) + len(Inputs._fields)

SECOND_DERIVATIVE = (
    "the second derivative of a fastkd loss was asked for, and only first derivatives are there: for a "
    "gradient penalty or a Hessian compute the loss in plain torch, as F.kl_div(F.log_softmax(s, -1), "
    "F.softmax(t, -1))"
)
OVERWRITTEN = (
    "student_logits were used after kd_loss(..., inplace=True) had overwritten them with their gradient: use "
    "them before, or pass inplace=False"
)


def under_transforms() -> bool:
    """Whether torch.func's transforms or forward-mode AD are active, which need :class:`Transformed`."""
    if torch.compiler.is_compiling():
        if torch._C._are_functorch_transforms_active():
            # Traced by torch.compile, these transforms would take the op's gradient to be 0.
            raise RuntimeError("torch.compile cannot trace torch.func's transforms of a fastkd loss")
        return False
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def _batched(x: Tensor) -> bool:
    """Whether ``x`` is a batch of tensors: under torch.func.vmap, or with is_grads_batched=True."""
    return under_transforms() or (
        not torch.compiler.is_compiling() and torch._C._functorch.is_legacy_batchedtensor(x)
    )


@dataclass
class Overwritten:
    """The student's logits after their gradient has been written over them.

    Attributes:
        logits: the same memory, outside autograd.
        version: their version counter at that time. A later change in place raises the counter, which
            :meth:`gradient` detects.
    """

    logits: Tensor
    version: int = -1

    def gradient(self) -> Tensor:
        if self.logits._version != self.version:
            raise RuntimeError(
                "student_logits were modified by an inplace operation after kd_loss(..., inplace=True) had "
                "put their gradient there: pass inplace=False"
            )
        return self.logits


class Fused(torch.autograd.Function):
    """The loss and its gradients in one pass; the backward multiplies them by the upstream gradient.

    The last result, the anchor, is empty. It connects the backward's gradients to this node, so that a second
    derivative raises instead of being silently left out.
    """

    @staticmethod
    def forward(
        ctx: Any, request: Request, wanted: tuple[bool, ...], overwritten: Overwritten | None, *inputs: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        into = None if overwritten is None else overwritten.logits
        results = request.compute(Inputs(*inputs), wanted, into_student=into)
        gradients, anchor = results.gradients, results.row_loss.new_empty(0)
        ctx.save_for_backward(anchor, *(gradients if overwritten is None else (None, *gradients[1:])))
        ctx.dtypes = _dtypes(inputs)
        ctx.backend, ctx.overwritten = request.backend, overwritten
        return _returned(ctx, request.totals(Inputs(*inputs), results), anchor)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, _: Tensor | None, second: Tensor | None) -> Any:
        if second is not None and not torch.compiler.is_compiling():
            raise RuntimeError(SECOND_DERIVATIVE)
        if upstream is None:
            return (None,) * ARGUMENTS
        anchor, *gradients = ctx.saved_tensors
        if ctx.overwritten is not None:
            gradients[0] = ctx.overwritten.gradient()
        found = [
            None if g is None else times_upstream(g, upstream, dtype, ctx.backend)
            for g, dtype in zip(gradients, ctx.dtypes, strict=True)
        ]
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            found = [None if g is None else _FirstOrder.apply(g, anchor) for g in found]
        return (*SETTINGS, *found, *ROW_TENSORS)


class Deferred(torch.autograd.Function):
    """The loss alone; the backward computes the gradients, given the upstream gradient.

    float16 gradients need this. Multiplied by their final factor (a GradScaler's is in the upstream gradient)
    they are rounded to float16 once, and overflow only where the final gradient itself is too large. The
    gradient of a head's weight needs it, too, if the upstream gradient differs from token to token.
    """

    @staticmethod
    def forward(
        ctx: Any, request: Request, wanted: tuple[bool, ...], inplace: bool, *inputs: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        results = request.compute(Inputs(*inputs), NO_GRADIENT)
        anchor = results.row_loss.new_empty(0)
        _save(ctx, anchor, *inputs)
        ctx.request, ctx.wanted, ctx.inplace = request, wanted, inplace
        return _returned(ctx, request.totals(Inputs(*inputs), results), anchor)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, _: Tensor | None, second: Tensor | None) -> Any:
        if second is not None and not torch.compiler.is_compiling():
            raise RuntimeError(SECOND_DERIVATIVE)
        if upstream is None:
            return (None,) * ARGUMENTS
        anchor, *tensors = _saved(ctx)
        if _batched(upstream):
            found = _unscaled_gradients(ctx.request, ctx.wanted, tensors)
            found = [
                None if g is None else times_upstream(g, upstream, dtype, ctx.request.backend)
                for g, dtype in zip(found, _dtypes(tensors), strict=True)
            ]
        else:
            found = _gradients(ctx.request, ctx.wanted, upstream, tensors, ctx.inplace and not _keeps_graph())
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            found = [None if g is None else _FirstOrder.apply(g, anchor, upstream) for g in found]
        return (*SETTINGS, *found, *ROW_TENSORS)


def _returned(
    ctx: Any, totals: tuple[Tensor, Tensor | None], anchor: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The results of a forward: the loss, the metrics (empty if not requested), and the anchor."""
    loss, metrics = totals
    metrics = loss.new_empty(0) if metrics is None else metrics
    ctx.mark_non_differentiable(metrics)
    ctx.set_materialize_grads(False)
    return loss, metrics, anchor


class Overwrite(torch.autograd.Function):
    """Tells autograd that the logits are overwritten, so that a later use of them raises in its backward."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        ctx.mark_dirty(logits)
        return logits

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> None:
        raise RuntimeError(OVERWRITTEN)


class _FirstOrder(torch.autograd.Function):
    """Returns a gradient unchanged; differentiating it leads to the node that made it, which raises.

    Args:
        refused: further tensors that the gradient depends on, with no derivative implemented.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(gradient: Tensor, anchor: Tensor, *refused: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.set_materialize_grads(False)
        ctx.refused = len(inputs) - 2

    @staticmethod
    def backward(ctx: Any, by_gradient: Tensor | None) -> Any:
        if ctx.refused:
            raise RuntimeError(SECOND_DERIVATIVE)
        if by_gradient is None:
            return None, None
        return by_gradient, by_gradient.new_zeros(0)

    @staticmethod
    def jvp(ctx: Any, by_gradient: Tensor | None, by_anchor: Tensor | None, *_: Any) -> Tensor | None:
        if by_anchor is not None or ctx.refused:
            raise RuntimeError(SECOND_DERIVATIVE)
        return None if by_gradient is None else by_gradient.view_as(by_gradient)


class Transformed(torch.autograd.Function):
    """:class:`Fused` in the form that torch.func's transforms and forward-mode AD need, for logits only.

    It also returns its gradients, since such a function may save only its inputs and results.
    """

    @staticmethod
    def forward(request: Request, wanted: tuple[bool, ...], *inputs: Any) -> tuple[Tensor, ...]:
        results = request.compute(Inputs(*inputs), wanted)
        loss, metrics = request.totals(Inputs(*inputs), results)
        nothing = loss.new_empty(0)
        return (
            loss,
            nothing if metrics is None else metrics,
            loss.new_empty(0),
            *(nothing.clone() if g is None else g for g in results.gradients),
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        request, wanted, *_ = inputs
        _, metrics, anchor, *gradients = output
        ctx.mark_non_differentiable(metrics, *gradients)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(anchor, *gradients)
        ctx.save_for_forward(anchor, *gradients)
        ctx.request, ctx.wanted = request, wanted
        ctx.dtypes = _dtypes(inputs[2:])

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, _: Any, second: Tensor | None, *__: Any) -> Any:
        if second is not None:
            raise RuntimeError(SECOND_DERIVATIVE)
        arguments = DIFFERENTIABLE + len(ROW_TENSORS)
        if upstream is None:
            return (None,) * (2 + arguments)
        anchor, *gradients = ctx.saved_tensors
        found = [
            times_upstream(g, upstream, dtype, ctx.request.backend) if want else None
            for g, dtype, want in zip(gradients, ctx.dtypes, ctx.wanted, strict=True)
        ]
        found = [None if g is None else _FirstOrder.apply(g, anchor) for g in found]
        return (None, None, *found, *ROW_TENSORS)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        anchor, *gradients = ctx.saved_tensors
        by_row: Tensor | None = None
        for g, tangent in zip(gradients, tangents[2 : 2 + DIFFERENTIABLE], strict=True):
            if tangent is not None:
                along = (_FirstOrder.apply(g, anchor).to(wide(g)) * tangent).sum(-1).flatten()
                by_row = along if by_row is None else by_row + along
        if by_row is None:
            return (None,) * (3 + DIFFERENTIABLE)
        by_loss = by_row if ctx.request.per_token else by_row.sum()
        return (by_loss, None, by_row.new_zeros(0), *(None,) * DIFFERENTIABLE)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *arguments: Any) -> Any:
        return one_by_one(Transformed, info.batch_size, in_dims, arguments)


def times_upstream(grad: Tensor, upstream: Tensor, dtype: torch.dtype, backend: str | None) -> Tensor:
    """``grad * upstream`` in ``dtype``; ``upstream`` is 0-d, or ``(rows,)`` over ``grad``'s leading shape.

    The stored gradient may be overwritten when this backward is its last reader; with ``retain_graph=True``
    it is copied, so that a second backward does not rescale twice.
    """
    rows = math.prod(grad.shape[:-1])
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or _batched(upstream):
        # Plain torch can be differentiated with respect to `upstream`, batched and fused.
        factor = upstream if upstream.dim() == 0 else upstream.view(*grad.shape[:-1], 1)
        return (grad.to(upstream.dtype) * factor).to(dtype)
    if dtype != grad.dtype:
        # A head's sums. On a CPU, torch rounds faster than it multiplies and rounds.
        out = memory.empty_like(grad, dtype)
        return out.copy_(grad) if _is_one(upstream) else torch.mul(grad, upstream, out=out)
    keep = _keeps_graph()
    if _is_one(upstream):
        return memory.empty_like(grad).copy_(grad) if keep else grad
    out = memory.empty_like(grad) if keep else grad
    OPS.scale_rows(grad, upstream.expand(rows), backend, out)
    return out


def _is_one(upstream: Tensor) -> bool:
    """Whether it is a number known to be 1. On a CPU, reading it waits for nothing."""
    # A fake tensor has no number and another type.
    readable = upstream.device.type == "cpu" and upstream.dim() == 0 and type(upstream) is Tensor
    return readable and float(upstream) == 1.0


@torch.no_grad()
def _gradients(
    request: Request, wanted: tuple[bool, ...], upstream: Tensor, tensors: Any, inplace: bool
) -> list[Tensor | None]:
    """The gradients of a call whose upstream gradient is known."""
    inputs = Inputs(*tensors)
    into = inputs.student.detach() if inplace else None
    found = request.compute(inputs, wanted, upstream, into_student=into, metrics=False).gradients
    return [None if g is None else g.to(dtype) for g, dtype in zip(found, _dtypes(inputs), strict=True)]


@torch.no_grad()
def _unscaled_gradients(request: Request, wanted: tuple[bool, ...], tensors: Any) -> list[Tensor | None]:
    """The gradients of a call for an upstream gradient of 1; those of float16 tensors are float32."""
    if request.head_scales is not None:
        raise RuntimeError(
            "the gradients of linear_kd_loss(..., reduction='none'), and of float16 logits beside a "
            "HiddenTeacher, cannot be batched (is_grads_batched=True, vectorize=True): call backward for one "
            "upstream gradient after the other"
        )
    widened = [x.float() if x is not None and x.dtype == torch.float16 else x for x in tensors]
    return list(request.compute(Inputs(*widened), wanted, metrics=False).gradients)


def _dtypes(inputs: Sequence[Tensor | None]) -> list[torch.dtype]:
    """The dtypes of the inputs that may get a gradient; float32 for an absent one."""
    return [torch.float32 if x is None else x.dtype for x in tuple(inputs)[:DIFFERENTIABLE]]


def one_by_one(function: Any, batch_size: int, in_dims: Any, arguments: Any) -> tuple[Any, Any]:
    """A batching rule for vmap: applies the function to each element of the batch and stacks the results."""
    leaves, structure = pytree.tree_flatten(arguments)
    dims = pytree.tree_flatten(in_dims)[0]
    results = []
    for i in range(batch_size):
        element = [x if dim is None else x.select(dim, i) for x, dim in zip(leaves, dims, strict=True)]
        results.append(function.apply(*pytree.tree_unflatten(element, structure)))
    stacked = tuple(torch.stack(parts) for parts in zip(*results, strict=True))
    return stacked, (0,) * len(stacked)


def _save(ctx: Any, *tensors: Tensor | None) -> None:
    """Keep tensors for the backward; autograd cannot save those made in inference mode."""
    if torch.compiler.is_compiling():
        ctx.unsaved = [None] * len(tensors)
    else:
        ctx.unsaved = [x if x is not None and x.is_inference() else None for x in tensors]
    ctx.save_for_backward(*(None if y is not None else x for x, y in zip(tensors, ctx.unsaved, strict=True)))


def _saved(ctx: Any) -> list[Tensor | None]:
    return [x if y is None else y for x, y in zip(ctx.saved_tensors, ctx.unsaved, strict=True)]
