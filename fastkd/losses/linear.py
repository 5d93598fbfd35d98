"""``linear_kd_loss``: the distillation loss from hidden states, without holding all logits."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor

from fastkd.losses.options import Options
from fastkd.losses.run import run
from fastkd.losses.sides import head_side
from fastkd.teachers import HiddenTeacher, SparseTeacher


def linear_kd_loss(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher: Tensor | HiddenTeacher | SparseTeacher | None,
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
    class_weights: Tensor | None = None,
    z_loss: float = 0.0,
    vocab_size: int | None = None,
    teacher_columns: Tensor | None = None,
    teacher_tail: str = "renormalize",
    group: dist.ProcessGroup | None = None,
    backend: str | None = None,
    return_metrics: bool = False,
) -> Any:
    r"""Distillation loss from hidden states, without holding the ``(tokens, vocab)`` logits.

    Equals :func:`fastkd.kd_loss` on ``student_hidden @ student_weight.T + student_bias`` (scaled, then
    capped). The heads process a chunk of rows at a time, in the dtype of the inputs (under autocast in its
    dtype, as in ``F.linear``, so hidden states and weight may differ there); the logits of float16 heads are
    float32. Gradients of the weights are summed over the chunks in float32 (float64 for float64). Only under
    ``torch.func``'s transforms and forward-mode AD are all logits held.

    Args:
        student_hidden: ``(..., H_s)``.
        student_weight: ``(V_s, H_s)``, of the same dtype.
        teacher: :class:`fastkd.HiddenTeacher`, :class:`fastkd.SparseTeacher`, or logits ``(..., V_t)``.
        labels: ``(...)`` int64, aligned with the hidden states, or class probabilities ``(..., V)``.
        student_bias: ``(V_s,)`` or None.
        logit_scale: factor on the student's logits.
        logit_softcap: ``c`` in ``c * tanh(logits / c)``, applied to the scaled logits (Gemma 2); None for no
            cap.
        chunk_size: tokens per chunk. The default keeps the scratch memory within 512 MiB or, if that is
            more, twice the larger head. On a GPU it is up to 8,192 tokens, within 1/16 of the device's memory
            or 1 GiB. With ``group`` it is 512, on a GPU 2,048, since all processes must use the same chunks.
        group: as in :func:`fastkd.kd_loss`. The weights of both heads and the bias are this process's rows;
            the hidden states are the same on every process. Their gradient on each process is a partial sum:
            the tensor-parallel layer before the head adds these up, as it does for a head that returns
            logits.

    All other arguments are those of :func:`fastkd.kd_loss`, with its errors. With ``reduction="none"`` the
    backward runs the heads again, since a weight's gradient depends on each token's upstream gradient.

    Returns:
        A float32 scalar (float64 if an input is float64), or ``(...)`` with ``reduction="none"``. With
        ``return_metrics`` a pair of the loss and its :class:`fastkd.KDMetrics`.
    """
    if chunk_size is not None and (
        isinstance(chunk_size, bool) or not isinstance(chunk_size, int) or chunk_size < 1
    ):
        raise ValueError(f"chunk_size must be a positive int or None, got {chunk_size!r}")
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
    student = head_side("student", student_hidden, student_weight, student_bias, logit_scale, logit_softcap)
    return run(student, teacher, labels, options, chunk_size=chunk_size)
