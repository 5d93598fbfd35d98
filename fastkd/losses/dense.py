"""``kd_loss``: the distillation loss from the logits of both sides."""

from __future__ import annotations

from dataclasses import astuple
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

import fastkd.ops.dense  # noqa: F401  registers the ops
from fastkd.backends import registry
from fastkd.losses import checks, reduction as reductions
from fastkd.losses.gradient import times_upstream
from fastkd.ops.rows import wide
from fastkd.teachers import HiddenTeacher


class _DenseKD(torch.autograd.Function):
    """Row losses whose gradient comes out of the same pass."""

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        teacher: Tensor,
        labels: Tensor | None,
        loss_scale: Tensor,
        grad_scale: Tensor | None,
        unhold: Tensor | None,
        backend: str | None,
        arithmetic: tuple[Any, ...],
    ) -> Tensor:
        wanted = (student.requires_grad, teacher.requires_grad)
        row_loss, grad_student, grad_teacher = torch.ops.fastkd.dense_kd(
            student, teacher, labels, loss_scale, grad_scale, *wanted, backend, *arithmetic
        )
        ctx.save_for_backward(grad_student, grad_teacher, unhold)
        ctx.wanted, ctx.backend = wanted, backend
        return row_loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        grad_student, grad_teacher, unhold = ctx.saved_tensors
        factor = upstream if unhold is None else upstream * unhold
        by_student = times_upstream(grad_student, factor, ctx.backend) if ctx.wanted[0] else None
        by_teacher = times_upstream(grad_teacher, factor, ctx.backend) if ctx.wanted[1] else None
        return by_student, by_teacher, None, None, None, None, None, None


class _DenseKDInPlace(torch.autograd.Function):
    """The same, the student's gradient written over its logits."""

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        teacher: Tensor,
        labels: Tensor | None,
        loss_scale: Tensor,
        grad_scale: Tensor | None,
        unhold: Tensor | None,
        backend: str | None,
        arithmetic: tuple[Any, ...],
    ) -> tuple[Tensor, Tensor]:
        ctx.wanted, ctx.backend = teacher.requires_grad, backend
        row_loss, grad_teacher = torch.ops.fastkd.dense_kd_(
            student, teacher, labels, loss_scale, grad_scale, ctx.wanted, backend, *arithmetic
        )
        ctx.mark_dirty(student)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(student, grad_teacher, unhold)
        return row_loss, student

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor | None, later: Tensor | None) -> tuple[Any, ...]:
        if later is not None:
            raise RuntimeError(
                "student_logits were used after kd_loss(..., inplace=True) had overwritten them with their "
                "gradient: use them before, or pass inplace=False"
            )
        if upstream is None:
            return (None,) * 8
        grad_student, grad_teacher, unhold = ctx.saved_tensors
        factor = upstream if unhold is None else upstream * unhold
        by_student = times_upstream(grad_student.detach(), factor, ctx.backend)
        by_teacher = times_upstream(grad_teacher, factor, ctx.backend) if ctx.wanted else None
        return by_student, by_teacher, None, None, None, None, None, None


def kd_loss(
    student_logits: Tensor,
    teacher: Tensor,
    labels: Tensor | None = None,
    *,
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
    inplace: bool = False,
    backend: str | None = None,
) -> Tensor:
    r"""Distillation loss between two tensors of logits, fused with cross-entropy.

    For one token, with :math:`q = \mathrm{softmax}(s / T)` and :math:`p = \mathrm{softmax}(t / T_t)`,

    .. math:: L = r \, T^2 D(p, q) + (1 - r) \, \mathrm{CE}(s) + z \, \mathrm{logsumexp}(s)^2

    computed in float32 (float64 when an input is) in one pass that also writes the gradient. On
    ``(N, V)`` logits ``kd_loss(s, t, temperature=T)`` equals
    ``F.kl_div(F.log_softmax(s / T, -1), F.softmax(t / T, -1), reduction="batchmean") * T * T``
    (Hinton et al. 2015, *Distilling the Knowledge in a Neural Network*).

    Args:
        student_logits: ``(..., V_s)``, float32, bfloat16, float16 or float64, any strides.
        teacher: logits ``(..., V_t)`` of the same leading shape; the dtype may differ. A gradient flows to
            it if it requires one.
        labels: ``(...)`` int64, aligned with the logits (the caller shifts). Needed when ``kd_ratio < 1``.
        kd_ratio: ``r`` in [0, 1], the divergence's share. At 0 the teacher is not read.
        divergence: ``"forward_kl"`` sum p (log p - log q); ``"reverse_kl"`` sum q (log q - log p);
            ``"jsd"`` b KL(p, m) + (1 - b) KL(q, m) with m = b p + (1 - b) q (Agarwal et al. 2024, GKD).
        beta: ``b`` of ``jsd`` in [0, 1], default 0.5. As in TRL, 0 means forward_kl and 1 reverse_kl, though
            the formula itself tends to 0 there. Other divergences do not read it.
        temperature: ``T`` > 0 of the student's distribution in the divergence.
        teacher_temperature: ``T_t`` > 0, default ``temperature``.
        t_squared: multiply the divergence by ``T * T``, so that gradients keep their size.
        reduction: with w = ``token_weights`` (1 if None), over tokens whose label is not ``ignore_index``:
            ``"mean"`` sum(w L) / sum(w), 0 when nothing is valid; ``"sum"``; ``"batchmean"`` sum(w L) /
            ``student_logits.size(0)``; ``"none"`` w L in the leading shape.
        num_items: int or 0-d tensor in place of the denominator of ``"mean"``: the losses of micro-batches
            then add up to the loss of the batch.
        token_weights: ``(...)`` real.
        ignore_index: tokens with this label are not read, and their gradient is exactly 0.
        label_smoothing: e in [0, 1]: the label's share falls to 1 - e, e is spread over the vocabulary.
        z_loss: weight of the squared log-partition at temperature 1 (PaLM, Chowdhery et al. 2022).
        vocab_size: columns at or past it do not exist, on either side; needed when ``V_s != V_t``.
        inplace: write the gradient over ``student_logits`` (contiguous, and not a leaf), which saves the
            memory of a gradient. They hold no logits afterwards: a backward through any other use of them
            raises. Without effect where no student gradient is wanted, and under ``torch.compile``, whose
            planner decides on memory.
        backend: ``"native"``, ``"triton"``, ``"reference"``, or None for the best that can run.

    Returns:
        A float32 (float64) scalar, or ``(...)`` for ``reduction="none"``.

    Raises:
        ValueError: shapes, ranges, unknown names. TypeError: dtypes. IndexError: a label outside the
            vocabulary, on CPU (on a GPU that token's loss is NaN). BackendUnavailable: a named backend that
            cannot run. All before any memory is touched.
    """
    checks.logits_like("student_logits", student_logits)
    if isinstance(teacher, HiddenTeacher):
        raise TypeError("teacher must be a tensor of logits: a HiddenTeacher goes with fastkd.linear_kd_loss")
    checks.logits_like("teacher", teacher)
    leading, device = student_logits.shape[:-1], student_logits.device
    checks.leading_shape("teacher", teacher.shape[:-1], leading)
    checks.same_device(device, teacher=teacher)
    checks.per_token(labels, token_weights, leading, device)
    reductions.check(reduction, num_items)
    registry.check_name(backend)
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
        vocab_size=checks.vocabulary(student_logits.shape[-1], teacher.shape[-1], vocab_size),
        labels=labels,
    )
    scale = reductions.row_scale(
        reduction,
        labels,
        ignore_index,
        token_weights,
        num_items,
        student_logits,
        wide(student_logits, teacher),
    )
    held, unhold = reductions.held_scale(scale, spec, student_logits.dtype, teacher.dtype)
    inputs = (student_logits, teacher, labels, scale, held, unhold, backend, astuple(spec))
    if inplace and torch.is_grad_enabled() and student_logits.requires_grad:
        checks.overwritable(student_logits)
        if not torch.compiler.is_compiling():
            rows, _ = _DenseKDInPlace.apply(*inputs)
            return rows.view(leading) if reduction == "none" else rows.sum()
    if torch.is_grad_enabled() and (student_logits.requires_grad or teacher.requires_grad):
        rows = _DenseKD.apply(*inputs)
    else:
        rows, _, _ = torch.ops.fastkd.dense_kd(
            student_logits, teacher, labels, scale, held, False, False, backend, *astuple(spec)
        )
    return rows.view(leading) if reduction == "none" else rows.sum()
