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

    where ``r`` is ``kd_ratio`` and ``z`` is ``z_loss``. It is computed in float32 (float64 if an input is
    float64), in one pass that also writes the gradient; float16 gradients are written in the backward. On
    ``(N, V)`` logits ``kd_loss(s, t, temperature=T)`` equals
    ``F.kl_div(F.log_softmax(s / T, -1), F.softmax(t / T, -1), reduction="batchmean") * T * T``
    (Hinton et al. 2015, *Distilling the Knowledge in a Neural Network*).

    Args:
        student_logits: ``(..., V_s)``, float32, bfloat16, float16 or float64, with any strides.
        teacher: logits ``(..., V_t)`` of the same leading shape (the dtype may differ), or a
            :class:`fastkd.SparseTeacher`, or a :class:`fastkd.HiddenTeacher`, whose logits are computed a few
            rows at a time. May be None if ``kd_ratio`` is 0. A gradient flows to each of the teacher's
            floating tensors that requires one.
        labels: ``(...)`` int64, aligned with the logits (the caller shifts them). Needed if ``kd_ratio < 1``.
            Or class probabilities ``(..., V)`` of a floating dtype, as in ``F.cross_entropy``; no token is
            ignored then.
        kd_ratio: ``r`` in [0, 1], the divergence's weight. At 0 the teacher is read for the metrics only.
        divergence: ``D(p, q)``, in nats (``docs/losses.md`` has the gradients and when to use which):

            - ``"forward_kl"`` sum p (log p - log q);
            - ``"reverse_kl"`` sum q (log q - log p);
            - ``"jeffreys"`` the sum of both;
            - ``"jsd"`` b KL(p, m) + (1 - b) KL(q, m), m = b p + (1 - b) q (GKD, Agarwal et al. 2024);
            - ``"skew_forward_kl"`` KL(p, b p + (1 - b) q) (DistiLLM, Ko et al. 2024);
            - ``"skew_reverse_kl"`` KL(q, b q + (1 - b) p) (DistiLLM);
            - ``"tvd"`` sum abs(p - q) / 2, with subgradient 0 where p = q;
            - ``"triangular"`` sum (p - q)^2 / (p + q) (Topsoe 2000);
            - ``"hellinger"`` 1 - sum sqrt(p q);
            - ``"pearson_chi2"`` sum (p - q)^2 / q;
            - ``"alpha"`` (1 - sum p^a q^(1-a)) / (a (1 - a)) (Amari);
            - ``"renyi"`` log(sum p^a q^(1-a)) / (a - 1);
            - ``"alpha_beta"`` -1/(a b) sum(p^a q^b - a/(a+b) p^(a+b) - b/(a+b) q^(a+b)) (ABKD, Wang et al.
                2025);
            - ``"decoupled"`` TCKD + b NCKD (DKD, Zhao et al. 2022); needs labels;
            - ``"log_acceptance"`` -log(sum min(p, q)), for draft models (Samarin et al. 2026);
            - ``"kl_tvd"`` w KL(p, q) + (1 - w) TVD(p, q), with w = exp(-b (1 - TVD)) per token, which the
                gradient treats as a constant (Samarin et al. 2026).
        beta: ``b``. ``jsd``: in [0, 1], default 0.5; as in TRL, 0 means forward_kl and 1 reverse_kl, though
            the formula itself tends to 0 there. The skews: in [0, 1), default 0.1. ``decoupled``: >= 0,
            default 1. ``alpha_beta``: not 0, default 0.5. ``kl_tvd``: >= 0, default 3.
        alpha: ``a``. ``alpha``: not 0 or 1, default 0.5. ``renyi``: > 0 and not 1, default 0.5.
            ``alpha_beta``: not 0, nor ``-beta``, default 0.5.
        temperature: ``T`` of the student's distribution in the divergence, in [1e-15, 1e15].
        teacher_temperature: ``T_t``, in the same range, default ``temperature``.
        t_squared: multiply the divergence by ``T * T``, so that gradients keep their size.
        reduction: how the losses L of the tokens whose label is not ``ignore_index`` are combined, with w =
            ``token_weights`` (1 if None): ``"mean"`` sum(w L) / sum(w), or 0 if no token is valid; ``"sum"``
            sum(w L); ``"batchmean"`` sum(w L) / ``student_logits.size(0)``; ``"none"`` w L in the leading
            shape.
        num_items: int or 0-d tensor that replaces the denominator of ``"mean"``, so that the losses of
            micro-batches add up to the loss of the batch.
        token_weights: ``(...)``, real factors of the tokens' losses.
        ignore_index: tokens with this label are not read, and their gradient is exactly 0.
        label_smoothing: e in [0, 1]: cross-entropy's target is 1 - e at the label, plus e spread evenly over
            the vocabulary.
        class_weights: ``(V,)`` floating, factors of the classes in the cross-entropy, like the ``weight`` of
            ``F.cross_entropy``: the mean of cross-entropy over labels that are class numbers is divided by
            the sum of their weights (or by ``num_items``). With class weights, or class probabilities as
            labels, cross-entropy needs a pass of its own.
        z_loss: weight of the student's squared log-sum-exp at temperature 1 (PaLM, Chowdhery et al. 2022).
        vocab_size: columns at or beyond it are padding, on either side, and are not read; needed if ``V_s !=
            V_t``, unless ``teacher_columns`` is given. With ``group`` it counts the columns of all shards,
            and on a GPU it makes the host wait for the device once a call.
        teacher_columns: ``(V_s,)`` int64, for a student whose vocabulary is part of the teacher's (a draft
            model's): entry ``i`` is the teacher's column for the student's column ``i``, without repeats. The
            teacher's logits are then ``(..., V_t)`` of any width; their selected columns are copied a few
            rows at a time.
        teacher_tail: how the loss treats the teacher's probability outside ``teacher_columns``:
            ``"renormalize"`` ignores it, and ``"bucket"`` keeps it as one more class, to which the student
            gives no probability. ``"bucket"`` needs a divergence that is finite then; ``log_acceptance`` is
            one, and with it measures the true acceptance probability. A :class:`fastkd.SparseTeacher` uses
            its own ``tail``, and its indices are the teacher's columns.
        class_dim: the dimension of the logits (a teacher's, and class probabilities', too) that holds the
            classes: 1 for ``(N, C, d1, ...)`` as in ``F.cross_entropy``. A sparse teacher's entries stay
            last.
        inplace: write the gradient over ``student_logits``, which saves the memory of a gradient. They must
            be contiguous, and neither a leaf that requires grad nor a view of one. Afterwards they hold no
            logits: a backward through any later use of them, or of a tensor that they are a view of, raises.
            The forward overwrites them, or, where the gradient has to wait for the upstream gradient (as for
            float16), the backward. The option has no effect if the student needs no gradient, if the loss
            needs two passes, under ``torch.compile``, whose planner decides on memory, and under
            ``torch.func``'s transforms.
        group: process group across which the vocabulary is sharded: each process has a range of columns, of
            any width, in rank order (the head of a tensor-parallel model). ``student_logits`` and ``teacher``
            are this process's columns; ``labels``, the same on every process, count the columns of the whole
            vocabulary. Every process gets the loss over the whole vocabulary and the gradient of its own
            columns. Only per-token scalars cross the network (``docs/losses.md``).
        backend: ``"native"``, ``"triton"`` or ``"reference"``. None means the backend that the environment
            variable ``FASTKD_BACKEND`` names, or if it is unset the best one that can run.
        return_metrics: also return :class:`fastkd.KDMetrics`, from the same pass.

    Returns:
        A float32 scalar (float64 if an input is float64), or ``(...)`` with ``reduction="none"``. With
        ``return_metrics`` a pair of the loss and its metrics.

    Raises:
        ValueError: a wrong shape, a number out of range, an unknown name, or options that exclude each other.
        TypeError: a wrong type or dtype.
        IndexError: a label outside the vocabulary, on a CPU. (On a GPU it makes that token's loss NaN, unless
            its weight is 0: the host would have to wait for the device to know.)
        BackendUnavailable: the named backend cannot run here.

    All of these are raised before any memory is touched.
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
