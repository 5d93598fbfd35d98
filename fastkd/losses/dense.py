"""``kd_loss``: the distillation loss from the student's logits."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor

from fastkd.losses import checks
from fastkd.losses.options import Options
from fastkd.losses.run import run
from fastkd.losses.sides import Side
from fastkd.teachers import HiddenTeacher, SparseTeacher


def classes_last(class_dim: int, student: Tensor, teacher: Any, labels: Any) -> tuple[Tensor, Any, Any]:
    """Views of logits, and of labels that are class probabilities, with the classes in the last dimension."""
    if isinstance(class_dim, bool) or not isinstance(class_dim, int):
        raise TypeError(f"class_dim must be an int, not {type(class_dim).__name__}")
    if not -student.dim() <= class_dim < student.dim():
        raise ValueError(
            f"class_dim must be in [{-student.dim()}, {student.dim() - 1}] for logits of {student.dim()} "
            f"dimensions, got {class_dim}"
        )

    def moved(x: Any) -> Any:
        if isinstance(x, Tensor) and x.is_floating_point() and x.dim() == student.dim():
            return x.movedim(class_dim, -1)
        return x

    return student.movedim(class_dim, -1), moved(teacher), moved(labels)


def kd_loss(
    student_logits: Tensor,
    teacher: Tensor | HiddenTeacher | SparseTeacher | None,
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
    class_weights: Tensor | None = None,
    z_loss: float = 0.0,
    vocab_size: int | None = None,
    teacher_columns: Tensor | None = None,
    teacher_tail: str = "renormalize",
    class_dim: int = -1,
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
            it if it requires one. Or a :class:`fastkd.SparseTeacher`, or a :class:`fastkd.HiddenTeacher`,
            whose logits exist a few rows at a time. None where ``kd_ratio`` is 0.
        labels: ``(...)`` int64, aligned with the logits (the caller shifts). Needed when ``kd_ratio < 1``. Or
            class probabilities ``(..., V)`` of a floating dtype, as ``F.cross_entropy`` takes them; then no
            label is ignored.
        kd_ratio: ``r`` in [0, 1], the divergence's share. At 0 the teacher is read for the metrics only.
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
        class_weights: ``(V,)`` floating, factors of the classes in the cross-entropy, as the ``weight`` of
            ``F.cross_entropy``; its mean, too, is divided by the sum of the labels' weights (or by
            ``num_items``). With class weights, or class probabilities as labels, cross-entropy takes a pass
            of its own.
        z_loss: weight of the squared log-partition at temperature 1 (PaLM, Chowdhery et al. 2022).
        vocab_size: columns at or past it do not exist, on either side; needed when ``V_s != V_t``. With
            ``group`` it counts the columns of all shards, and on a GPU its use waits for the device once a
            call.
        teacher_columns: ``(V_s,)`` int64 for a student whose vocabulary is a part of the teacher's (a draft
            model's): the teacher's column of each of the student's, each once. The teacher's logits are then
            ``(..., V_t)`` of any width. A few rows of its selected columns exist at a time.
        teacher_tail: the teacher's probability outside these columns: ``"renormalize"`` leaves it out, and
            ``"bucket"`` keeps it as a class to which the student gives nothing (for divergences that are
            finite then: ``log_acceptance`` is that of the true acceptance probability). A
            :class:`fastkd.SparseTeacher` has a tail of its own; its indices are the teacher's columns.
        class_dim: the dimension of the logits (a teacher's, and class probabilities', too) that holds the
            classes: 1 for ``(N, C, d1, ...)`` as in ``F.cross_entropy``. A sparse teacher's entries stay
            last.
        inplace: write the gradient over ``student_logits`` (contiguous, and neither a leaf nor a view of
            one), which saves the memory of a gradient. They hold no logits afterwards: a backward through any
            later use of them (of anything that they are a view of, too) raises. float16 logits are
            overwritten in the backward, others at once. Without effect where no student gradient is wanted or
            the loss takes two passes, under ``torch.compile``, whose planner decides on memory, and under
            ``torch.func``'s transforms.
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
    if class_dim != -1:
        student_logits, teacher, labels = classes_last(class_dim, student_logits, teacher, labels)
    options = Options(
        kd_ratio,
        divergence,
        beta,
        alpha,
        temperature,
        teacher_temperature,
        t_squared,
        reduction,
        num_items,
        token_weights,
        ignore_index,
        label_smoothing,
        z_loss,
        vocab_size,
        group,
        backend,
        return_metrics,
        class_weights,
        teacher_columns,
        teacher_tail,
    )
    student = Side(student_logits, columns=student_logits.shape[-1])
    return run(student, teacher, labels, options, inplace=inplace)
