"""``linear_kd_loss``: the distillation loss from hidden states, without the logits."""

from __future__ import annotations

import math
from dataclasses import astuple
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

import fastkd.ops.linear  # noqa: F401  registers the op
from fastkd.backends import registry
from fastkd.losses import checks, reduction as reductions
from fastkd.losses.gradient import times_upstream
from fastkd.ops.rows import wide
from fastkd.teachers import HiddenTeacher


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
    ) -> Tensor:
        row_loss, *gradients = call(hidden, weight, bias, teacher, teacher_weight, teacher_bias, wanted)
        ctx.save_for_backward(unhold, *gradients)
        ctx.wanted, ctx.backend = wanted, call.backend
        ctx.shapes = (hidden.shape, teacher.shape)
        return row_loss.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
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
    ) -> Tensor:
        inputs = (hidden, weight, bias, teacher, teacher_weight, teacher_bias)
        row_loss, *_ = call(*inputs, [False] * 6)
        ctx.save_for_backward(unhold, call.labels, call.loss_scale, call.grad_scale, *inputs)
        ctx.wanted, ctx.call = wanted, call.without_tensors()
        return row_loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        unhold, labels, loss_scale, grad_scale, *inputs = ctx.saved_tensors
        held = loss_scale if grad_scale is None else grad_scale
        call = ctx.call.with_tensors(labels, loss_scale, held * upstream)
        _, *gradients = call(*inputs, ctx.wanted)
        found = [g if want else None for g, want in zip(gradients, ctx.wanted, strict=True)]
        if unhold is not None:
            found = [None if g is None else g * unhold.to(g.dtype) for g in found]
        for place in (0, 3):
            grad = found[place]
            found[place] = None if grad is None else grad.view(inputs[place].shape)
        return (*found, None, None, None)


class _Call:
    """The op with everything bound but the tensors that may get a gradient."""

    def __init__(
        self,
        labels: Tensor | None,
        loss_scale: Tensor | None,
        grad_scale: Tensor | None,
        scales: tuple[float, float | None, float, float | None],
        chunk_size: int | None,
        backend: str | None,
        arithmetic: tuple[Any, ...],
    ) -> None:
        self.labels, self.loss_scale, self.grad_scale = labels, loss_scale, grad_scale
        self.scales, self.chunk_size, self.backend, self.arithmetic = scales, chunk_size, backend, arithmetic

    def with_tensors(
        self, labels: Tensor | None, loss_scale: Tensor | None, grad_scale: Tensor | None
    ) -> _Call:
        return _Call(
            labels, loss_scale, grad_scale, self.scales, self.chunk_size, self.backend, self.arithmetic
        )

    def without_tensors(self) -> _Call:
        return self.with_tensors(None, None, None)

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
            *(teacher, teacher_weight, teacher_bias, teacher_scale, teacher_softcap),
            *(self.labels, self.loss_scale, self.grad_scale, wanted, self.chunk_size, self.backend),
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
    teacher: Tensor | HiddenTeacher,
    labels: Tensor | None = None,
    *,
    student_bias: Tensor | None = None,
    logit_scale: float = 1.0,
    logit_softcap: float | None = None,
    chunk_size: int | None = None,
    kd_ratio: float = 1.0,
    divergence: str = "forward_kl",
    beta: float | None = None,
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
    backend: str | None = None,
) -> Tensor:
    r"""Distillation loss from hidden states; the ``(tokens, vocab)`` logits never exist.

    Equal to :func:`fastkd.kd_loss` on ``student_hidden @ student_weight.T + student_bias`` (scaled, then
    capped). The rows go through the heads a chunk at a time, in the inputs' dtype whatever autocast says;
    gradients of the weights are summed over the chunks in float32.

    Args:
        student_hidden: ``(..., H_s)``.
        student_weight: ``(V_s, H_s)``, same dtype.
        teacher: :class:`fastkd.HiddenTeacher`, or logits ``(..., V_t)``.
        labels: ``(...)`` int64, aligned with the hidden states.
        student_bias: ``(V_s,)``.
        logit_scale: factor on the student's logits.
        logit_softcap: ``c`` of ``c * tanh(logits / c)`` on the scaled logits (Gemma 2), None for none.
        chunk_size: tokens per chunk, default chosen so that the scratch stays near 400 MB.

    All other arguments are those of :func:`fastkd.kd_loss`, with its errors. With ``reduction="none"`` the
    backward runs the heads again, since a weight's gradient depends on each token's upstream gradient.

    Returns:
        A float32 (float64) scalar, or ``(...)`` for ``reduction="none"``.
    """
    _check_head("student", student_hidden, student_weight, student_bias)
    leading, device = student_hidden.shape[:-1], student_hidden.device
    teacher_weight = teacher_bias = None
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
    else:
        teacher_rows = checks.logits_like("teacher", teacher)
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
    spec = checks.row_spec(
        kd_ratio=kd_ratio,
        divergence=divergence,
        beta=beta,
        temperature=temperature,
        teacher_temperature=teacher_temperature,
        t_squared=t_squared,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        vocab_size=checks.vocabulary(student_weight.shape[0], teacher_columns, vocab_size),
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
    call = _Call(labels, scale, held, (*student_scales, *teacher_scales), chunk_size, backend, astuple(spec))
    inputs = (student_hidden, student_weight, student_bias, teacher_rows, teacher_weight, teacher_bias)
    wanted = [torch.is_grad_enabled() and x is not None and x.requires_grad for x in inputs]
    if not any(wanted):
        rows, *_ = call(*inputs, wanted)
        return rows.view(leading) if reduction == "none" else rows.sum()
    if reduction == "none":
        return _LinearKDRows.apply(*inputs, unhold, wanted, call).view(leading)
    return _LinearKD.apply(*inputs, unhold, wanted, call)


def _softcap(value: float | None) -> float | None:
    return None if value is None else checks.number("logit_softcap", value, 0.0, math.inf, open_low=True)
