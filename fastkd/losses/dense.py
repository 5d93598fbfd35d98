"""``kd_loss``: the distillation loss from the logits of both sides."""

from __future__ import annotations

from dataclasses import astuple
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

import fastkd.ops.dense  # noqa: F401  registers the ops
from fastkd.backends import registry
from fastkd.losses import checks, reduction as reductions
from fastkd.losses.gradient import times_upstream
from fastkd.losses.metrics import mean_metrics
from fastkd.ops.rows import wide
from fastkd.teachers import HiddenTeacher, SparseTeacher


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
        call: _Call,
    ) -> tuple[Tensor, Tensor]:
        wanted = (student.requires_grad, teacher.requires_grad)
        row_loss, grad_student, grad_teacher, metrics = call(
            student, teacher, labels, loss_scale, grad_scale, *wanted
        )
        ctx.save_for_backward(grad_student, grad_teacher, unhold)
        ctx.wanted, ctx.backend = wanted, call.backend
        ctx.mark_non_differentiable(metrics)
        return row_loss, metrics

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Any, ...]:
        grad_student, grad_teacher, unhold = ctx.saved_tensors
        factor = upstream if unhold is None else upstream * unhold
        by_student = times_upstream(grad_student, factor, ctx.backend) if ctx.wanted[0] else None
        by_teacher = times_upstream(grad_teacher, factor, ctx.backend) if ctx.wanted[1] else None
        return by_student, by_teacher, None, None, None, None, None


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
        call: _Call,
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.wanted, ctx.backend = teacher.requires_grad, call.backend
        row_loss, grad_teacher, metrics = call.in_place(
            student, teacher, labels, loss_scale, grad_scale, ctx.wanted
        )
        ctx.mark_dirty(student)
        ctx.mark_non_differentiable(metrics)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(student, grad_teacher, unhold)
        return row_loss, metrics, student

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, upstream: Tensor | None, _: Tensor | None, later: Tensor | None
    ) -> tuple[Any, ...]:
        if later is not None:
            raise RuntimeError(
                "student_logits were used after kd_loss(..., inplace=True) had overwritten them with their "
                "gradient: use them before, or pass inplace=False"
            )
        if upstream is None:
            return (None,) * 7
        grad_student, grad_teacher, unhold = ctx.saved_tensors
        factor = upstream if unhold is None else upstream * unhold
        by_student = times_upstream(grad_student.detach(), factor, ctx.backend)
        by_teacher = times_upstream(grad_teacher, factor, ctx.backend) if ctx.wanted else None
        return by_student, by_teacher, None, None, None, None, None


class _Call(NamedTuple):
    """The op with everything bound but tensors that may need a gradient and those of the reduction."""

    indices: Tensor | None
    tail: str | None
    metrics: bool
    group: str | None
    backend: str | None
    arithmetic: tuple[Any, ...]

    def __call__(
        self,
        student: Tensor,
        teacher: Tensor,
        labels: Tensor | None,
        loss_scale: Tensor,
        grad_scale: Tensor | None,
        student_grad: bool,
        teacher_grad: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return torch.ops.fastkd.dense_kd(
            *(student, teacher, self.indices, self.tail, labels, loss_scale, grad_scale),
            *(student_grad, teacher_grad, self.metrics, self.group, self.backend),
            *self.arithmetic,
        )

    def in_place(
        self,
        student: Tensor,
        teacher: Tensor,
        labels: Tensor | None,
        loss_scale: Tensor,
        grad_scale: Tensor | None,
        teacher_grad: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        return torch.ops.fastkd.dense_kd_(
            *(student, teacher, self.indices, self.tail, labels, loss_scale, grad_scale),
            *(teacher_grad, self.metrics, self.group, self.backend),
            *self.arithmetic,
        )


def kd_loss(
    student_logits: Tensor,
    teacher: Tensor | SparseTeacher,
    labels: Tensor | None = None,
    *,
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
    inplace: bool = False,
    group: dist.ProcessGroup | None = None,
    backend: str | None = None,
    return_metrics: bool = False,
) -> Any:
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
            it if it requires one. Or a :class:`fastkd.SparseTeacher`.
        labels: ``(...)`` int64, aligned with the logits (the caller shifts). Needed when ``kd_ratio < 1``.
        kd_ratio: ``r`` in [0, 1], the divergence's share. At 0 the teacher is not read.
        divergence: ``D(p, q)``, in nats (``docs/losses.md`` has the gradients and when to use which):

            - ``"forward_kl"`` sum p (log p - log q);
            - ``"reverse_kl"`` sum q (log q - log p);
            - ``"jeffreys"`` the sum of both;
            - ``"jsd"`` b KL(p, m) + (1 - b) KL(q, m), m = b p + (1 - b) q (GKD, Agarwal et al. 2024);
            - ``"skew_forward_kl"`` KL(p, b p + (1 - b) q) (DistiLLM, Ko et al. 2024);
            - ``"skew_reverse_kl"`` KL(q, b q + (1 - b) p) (likewise);
            - ``"tvd"`` sum abs(p - q) / 2, with subgradient 0 where p = q;
            - ``"hellinger"`` 1 - sum sqrt(p q);
            - ``"alpha"`` (1 - sum p^a q^(1-a)) / (a (1 - a)) (Amari);
            - ``"renyi"`` log(sum p^a q^(1-a)) / (a - 1);
            - ``"alpha_beta"`` -1/(a b) sum(p^a q^b - a/(a+b) p^(a+b) - b/(a+b) q^(a+b)) (ABKD, Wang et al.
                2025);
            - ``"decoupled"`` TCKD + b NCKD (DKD, Zhao et al. 2022); needs labels;
            - ``"log_acceptance"`` -log(sum min(p, q)), for draft models (Samarin et al. 2026);
            - ``"kl_tvd"`` w KL(p, q) + (1 - w) TVD(p, q), w = exp(-b (1 - TVD)) per token, a constant for the
                gradient (likewise).
        beta: ``b``. ``jsd``: in [0, 1], default 0.5; as in TRL, 0 means forward_kl and 1 reverse_kl, though
            the formula itself tends to 0 there. The skews: in [0, 1), default 0.1. ``decoupled``: >= 0,
            default 1. ``alpha_beta``: not 0, default 0.5. ``kl_tvd``: >= 0, default 3.
        alpha: ``a``. ``alpha``: not 0 or 1, default 0.5. ``renyi``: > 0 and not 1, default 0.5.
            ``alpha_beta``: not 0, nor ``-beta``, default 0.5.
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
        vocab_size: columns at or past it do not exist, on either side; needed when ``V_s != V_t``. With
            ``group`` it counts the columns of all shards, and on a GPU its use waits for the device once a
            call.
        inplace: write the gradient over ``student_logits`` (contiguous, and not a leaf), which saves the
            memory of a gradient. They hold no logits afterwards: a backward through any other use of them
            raises. Without effect where no student gradient is wanted, and under ``torch.compile``, whose
            planner decides on memory.
        group: process group across which the vocabulary lies, a range of columns on each process in rank
            order, of any widths (the head of a tensor-parallel model). ``student_logits`` and ``teacher`` are
            this process's columns, ``labels`` (the same everywhere) count those of the whole vocabulary. The
            loss is the whole vocabulary's on every process, the gradient that of the process's own columns.
            Only per-token scalars cross the network (``docs/losses.md``).
        backend: ``"native"``, ``"triton"``, ``"reference"``, or None for the best that can run.

        return_metrics: also return :class:`fastkd.KDMetrics`, from the same pass.

    Returns:
        A float32 (float64) scalar, or ``(...)`` for ``reduction="none"``; with ``return_metrics`` a pair.

    Raises:
        ValueError: shapes, ranges, unknown names. TypeError: dtypes. IndexError: a label outside the
            vocabulary, on CPU (on a GPU that token's loss is NaN). BackendUnavailable: a named backend that
            cannot run. All before any memory is touched.
    """
    checks.logits_like("student_logits", student_logits, empty=group is not None)
    if isinstance(teacher, HiddenTeacher):
        raise TypeError("teacher must be a tensor of logits: a HiddenTeacher goes with fastkd.linear_kd_loss")
    leading, device = student_logits.shape[:-1], student_logits.device
    indices = tail = teacher_columns = None
    if isinstance(teacher, SparseTeacher):
        checks.sparse_teacher(teacher, leading, device, divergence, temperature, teacher_temperature)
        teacher_rows, indices, tail = teacher.logprobs, teacher.indices, teacher.tail
    else:
        teacher_rows = checks.logits_like("teacher", teacher, empty=group is not None)
        teacher_columns = teacher.shape[-1]
        checks.leading_shape("teacher", teacher.shape[:-1], leading)
        checks.same_device(device, teacher=teacher)
    checks.per_token(labels, token_weights, leading, device)
    reductions.check(reduction, num_items)
    registry.check_name(backend)
    columns, group_name = checks.shards(student_logits.shape[-1], teacher_columns, vocab_size, group)
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
        student_logits,
        wide(student_logits, teacher_rows),
    )
    held, unhold = reductions.held_scale(scale, spec, student_logits.dtype, teacher_rows.dtype)
    call = _Call(indices, tail, return_metrics, group_name, backend, astuple(spec))
    inputs = (student_logits, teacher_rows, labels, scale, held)
    in_place = inplace and torch.is_grad_enabled() and student_logits.requires_grad
    if in_place:
        checks.overwritable(student_logits)
    if in_place and not torch.compiler.is_compiling():
        rows, metrics, _ = _DenseKDInPlace.apply(*inputs, unhold, call)
    elif torch.is_grad_enabled() and (student_logits.requires_grad or teacher_rows.requires_grad):
        rows, metrics = _DenseKD.apply(*inputs, unhold, call)
    else:
        rows, _, _, metrics = call(*inputs, False, False)
    loss = rows.view(leading) if reduction == "none" else rows.sum()
    if not return_metrics:
        return loss
    return loss, mean_metrics(metrics, reductions.valid(labels, ignore_index, token_weights, student_logits))
