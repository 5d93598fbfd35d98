"""``linear_kd_loss``: the distillation loss from hidden states, without the logits."""

from __future__ import annotations

import math
from dataclasses import astuple
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

import fastkd.ops.linear  # noqa: F401  registers the op
from fastkd.backends import registry
from fastkd.losses import checks, reduction as reductions
from fastkd.losses.gradient import times_upstream
from fastkd.losses.metrics import mean_metrics
from fastkd.ops.rows import wide
from fastkd.teachers import HiddenTeacher, SparseTeacher


class _LinearKD(torch.autograd.Function):
    """The summed loss of all rows; every gradient comes out of the forward."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        teacher: Tensor,
        teacher_weight: Tensor | None,
        teacher_bias: Tensor | None,
        unhold: Tensor | None,
        wanted: list[bool],
        call: _Call,
    ) -> tuple[Tensor, Tensor]:
        row_loss, *gradients, metrics = call(
            hidden, weight, bias, teacher, teacher_weight, teacher_bias, wanted
        )
        ctx.save_for_backward(unhold, *gradients)
        ctx.wanted, ctx.backend = wanted, call.backend
        ctx.shapes = (hidden.shape, teacher.shape)
        ctx.mark_non_differentiable(metrics)
        return row_loss.sum(), metrics

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Any, ...]:
        unhold, *gradients = ctx.saved_tensors
        factor = upstream if unhold is None else upstream * unhold
        found = [
            times_upstream(g, factor.expand(g.shape[:-1].numel()), ctx.backend) if want else None
            for g, want in zip(gradients, ctx.wanted, strict=True)
        ]
        for place, shape in zip((0, 3), ctx.shapes, strict=True):
            grad = found[place]
            found[place] = None if grad is None else grad.view(shape)
        return (*found, None, None, None)


class _LinearKDRows(torch.autograd.Function):
    """One loss per row. The weights' gradients need the upstream rows, so the backward runs the op again."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        teacher: Tensor,
        teacher_weight: Tensor | None,
        teacher_bias: Tensor | None,
        unhold: Tensor | None,
        wanted: list[bool],
        call: _Call,
    ) -> tuple[Tensor, Tensor]:
        inputs = (hidden, weight, bias, teacher, teacher_weight, teacher_bias)
        row_loss, *_, metrics = call(*inputs, [False] * 6)
        ctx.save_for_backward(unhold, call.indices, call.labels, call.loss_scale, call.grad_scale, *inputs)
        ctx.wanted, ctx.call = (
            wanted,
            call._replace(indices=None, labels=None, loss_scale=None, grad_scale=None),
        )
        ctx.mark_non_differentiable(metrics)
        return row_loss, metrics

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Any, ...]:
        unhold, indices, labels, loss_scale, grad_scale, *inputs = ctx.saved_tensors
        held = loss_scale if grad_scale is None else grad_scale
        call = ctx.call._replace(
            indices=indices, labels=labels, loss_scale=loss_scale, grad_scale=held * upstream, metrics=False
        )
        _, *gradients, _ = call(*inputs, ctx.wanted)
        found = [g if want else None for g, want in zip(gradients, ctx.wanted, strict=True)]
        if unhold is not None:
            found = [None if g is None else g * unhold.to(g.dtype) for g in found]
        for place in (0, 3):
            grad = found[place]
            found[place] = None if grad is None else grad.view(inputs[place].shape)
        return (*found, None, None, None)


class _Call(NamedTuple):
    """The op with everything bound but the tensors that may get a gradient."""

    indices: Tensor | None
    tail: str | None
    labels: Tensor | None
    loss_scale: Tensor | None
    grad_scale: Tensor | None
    scales: tuple[float, float | None, float, float | None]
    metrics: bool
    chunk_size: int | None
    group: str | None
    backend: str | None
    arithmetic: tuple[Any, ...]

    def __call__(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        teacher: Tensor,
        teacher_weight: Tensor | None,
        teacher_bias: Tensor | None,
        wanted: list[bool],
    ) -> list[Tensor]:
        scale, softcap, teacher_scale, teacher_softcap = self.scales
        return torch.ops.fastkd.linear_kd(
            *(hidden, weight, bias, scale, softcap),
            *(teacher_weight, teacher_bias, teacher_scale, teacher_softcap),
            *(teacher, self.indices, self.tail, self.labels, self.loss_scale, self.grad_scale),
            *(wanted, self.metrics, self.chunk_size, self.group, self.backend),
            *self.arithmetic,
        )


def _check_head(side: str, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    checks.logits_like(f"{side}_hidden", hidden, "(..., H)")
    checks.logits_like(f"{side}_weight", weight, "(V, H)")
    if weight.dim() != 2 or weight.shape[1] != hidden.shape[-1]:
        raise ValueError(
            f"{side}_weight must have shape (V, {hidden.shape[-1]}) to match {side}_hidden, "
            f"got {tuple(weight.shape)}"
        )
    if bias is not None and (not isinstance(bias, Tensor) or bias.shape != weight.shape[:1]):
        raise ValueError(f"{side}_bias must be a tensor of shape ({weight.shape[0]},)")
    for name, x in (("weight", weight), ("bias", bias)):
        if x is not None and x.dtype != hidden.dtype:
            raise TypeError(
                f"{side}_{name} is {x.dtype} but {side}_hidden is {hidden.dtype}: cast one, for example "
                f"{side}_hidden.to({side}_{name}.dtype)"
            )


def linear_kd_loss(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher: Tensor | HiddenTeacher | SparseTeacher,
    labels: Tensor | None = None,
    *,
    student_bias: Tensor | None = None,
    logit_scale: float = 1.0,
    logit_softcap: float | None = None,
    chunk_size: int | None = None,
    kd_ratio: float = 1.0,
    divergence: str = "forward_kl",
    beta: float | None = None,
    alpha: float | None = None,
    temperature: float = 1.0,
    teacher_temperature: float | None = None,
    t_squared: bool = True,
    reduction: str = "mean",
    num_items: int | Tensor | None = None,
    token_weights: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    vocab_size: int | None = None,
    group: dist.ProcessGroup | None = None,
    backend: str | None = None,
    return_metrics: bool = False,
) -> Any:
    r"""Distillation loss from hidden states; the ``(tokens, vocab)`` logits never exist.

    Equal to :func:`fastkd.kd_loss` on ``student_hidden @ student_weight.T + student_bias`` (scaled, then
    capped). The rows go through the heads a chunk at a time, in the inputs' dtype whatever autocast says;
    gradients of the weights are summed over the chunks in float32.

    Args:
        student_hidden: ``(..., H_s)``.
        student_weight: ``(V_s, H_s)``, same dtype.
        teacher: :class:`fastkd.HiddenTeacher`, :class:`fastkd.SparseTeacher`, or logits ``(..., V_t)``.
        labels: ``(...)`` int64, aligned with the hidden states.
        student_bias: ``(V_s,)``.
        logit_scale: factor on the student's logits.
        logit_softcap: ``c`` of ``c * tanh(logits / c)`` on the scaled logits (Gemma 2), None for none.
        chunk_size: tokens per chunk, default chosen so that the scratch stays near 400 MB, on a GPU near
            1 GiB (with ``group``: 512, on a GPU 2,048, since all processes must cut alike).
        group: as in :func:`fastkd.kd_loss`; the weights (of both heads) and the bias are this process's rows
            of them, the hidden states the same everywhere. Their gradient is this process's share: the
            tensor-parallel layer in front adds the shares up, as it does for the logits of such a head.

    All other arguments are those of :func:`fastkd.kd_loss`, with its errors. With ``reduction="none"`` the
    backward runs the heads again, since a weight's gradient depends on each token's upstream gradient.

    Returns:
        A float32 (float64) scalar, or ``(...)`` for ``reduction="none"``; with ``return_metrics`` a pair.
    """
    _check_head("student", student_hidden, student_weight, student_bias)
    leading, device = student_hidden.shape[:-1], student_hidden.device
    teacher_weight = teacher_bias = indices = tail = teacher_columns = None
    student_scales = checks.number("logit_scale", logit_scale, -math.inf, math.inf), _softcap(logit_softcap)
    teacher_scales: tuple[float, float | None] = (1.0, None)
    if isinstance(teacher, HiddenTeacher):
        _check_head("teacher", teacher.hidden, teacher.weight, teacher.bias)
        teacher_rows, teacher_weight, teacher_bias = teacher.hidden, teacher.weight, teacher.bias
        teacher_columns = teacher.weight.shape[0]
        teacher_scales = (
            checks.number("teacher.logit_scale", teacher.logit_scale, -math.inf, math.inf),
            _softcap(teacher.logit_softcap),
        )
    elif isinstance(teacher, SparseTeacher):
        checks.sparse_teacher(teacher, leading, device, divergence, temperature, teacher_temperature)
        teacher_rows, indices, tail = teacher.logprobs, teacher.indices, teacher.tail
    else:
        teacher_rows = checks.logits_like("teacher", teacher, empty=group is not None)
        teacher_columns = teacher_rows.shape[-1]
    checks.leading_shape("teacher", teacher_rows.shape[:-1], leading)
    checks.same_device(
        device,
        student_weight=student_weight,
        student_bias=student_bias,
        teacher=teacher_rows,
        teacher_weight=teacher_weight,
        teacher_bias=teacher_bias,
    )
    checks.per_token(labels, token_weights, leading, device)
    reductions.check(reduction, num_items)
    registry.check_name(backend)
    if chunk_size is not None and (
        isinstance(chunk_size, bool) or not isinstance(chunk_size, int) or chunk_size < 1
    ):
        raise ValueError(f"chunk_size must be a positive int or None, got {chunk_size!r}")
    columns, group_name = checks.shards(student_weight.shape[0], teacher_columns, vocab_size, group)
    spec = checks.row_spec(
        kd_ratio=kd_ratio,
        divergence=divergence,
        alpha=alpha,
        beta=beta,
        temperature=temperature,
        teacher_temperature=teacher_temperature,
        t_squared=t_squared,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        vocab_size=columns,
        labels=labels,
    )
    scale = reductions.row_scale(
        reduction,
        labels,
        ignore_index,
        token_weights,
        num_items,
        student_hidden,
        wide(student_hidden, teacher_rows),
    )
    held, unhold = reductions.held_scale(scale, spec, student_hidden.dtype, teacher_rows.dtype)
    call = _Call(
        indices=indices,
        tail=tail,
        labels=labels,
        loss_scale=scale,
        grad_scale=held,
        scales=(*student_scales, *teacher_scales),
        metrics=return_metrics,
        chunk_size=chunk_size,
        group=group_name,
        backend=backend,
        arithmetic=astuple(spec),
    )
    inputs = (student_hidden, student_weight, student_bias, teacher_rows, teacher_weight, teacher_bias)
    wanted = [torch.is_grad_enabled() and x is not None and x.requires_grad for x in inputs]
    if not any(wanted):
        loss, *_, metrics = call(*inputs, wanted)
        loss = loss if reduction == "none" else loss.sum()
    else:
        function = _LinearKDRows if reduction == "none" else _LinearKD
        loss, metrics = function.apply(*inputs, unhold, wanted, call)
    loss = loss.view(leading) if reduction == "none" else loss
    if not return_metrics:
        return loss
    return loss, mean_metrics(metrics, reductions.valid(labels, ignore_index, token_weights, student_hidden))


def _softcap(value: float | None) -> float | None:
    return None if value is None else checks.number("logit_softcap", value, 0.0, math.inf, open_low=True)
