"""Losses between one layer of the student and one of the teacher, with one value for each position.

No loss depends on the size of the models' numbers, so that a weight means the same for every kind and every
pair of models: the squared errors are relative to the teacher's squares, cosines lie between 0 and 2, and
divergences are in nats. They are computed in float32 (float64 for float64 inputs). The values of padded
positions are meaningless.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def widened(values: Tensor) -> Tensor:
    """The values in float32, or in float64 if they are float64."""
    return values if values.dtype == torch.float64 else values.float()


def relative_error(student: Tensor, teacher: Tensor) -> Tensor:
    """``|s - t|^2 / |t|^2`` over the last dimension.

    A student that gives 0 has the error 1. Where the teacher itself gives 0, nothing measures the student's
    error, and the value is 0.
    """
    size = teacher.square().sum(-1)
    return (student - teacher).square().sum(-1) / size.where(size > 0, math.inf)


def hidden_loss(student: Tensor, teacher: Tensor, loss: str) -> Tensor:
    """``mse``: the squared difference, relative to the teacher's square; ``cosine``: 1 minus the cosine.

    Args:
        student, teacher: ``(batch, length, H)``, of the same width.

    Returns:
        ``(batch, length)``.
    """
    student, teacher = widened(student), widened(teacher)
    if loss == "cosine":
        return 1 - F.cosine_similarity(student, teacher, dim=-1)
    return relative_error(student, teacher)


def attention_loss(student: Tensor, teacher: Tensor, loss: str) -> Tensor:
    """Loss between both models' attention weights of each query, averaged over the heads.

    ``mse``: squared difference over the keys, relative to the square of the teacher's weights; ``kl``:
    divergence of the student's weights from the teacher's. If the models have different numbers of heads,
    each model's heads are averaged first. A student's maps include its attention dropout: dropped keys have
    a weight of 0, and ``kl`` leaves them out.

    Args:
        student, teacher: ``(batch, heads, queries, keys)`` attention weights, 0 at masked keys.

    Returns:
        ``(batch, queries)``.
    """
    student, teacher = widened(student), widened(teacher)
    if student.shape[1] != teacher.shape[1]:
        student, teacher = student.mean(1, keepdim=True), teacher.mean(1, keepdim=True)
    if loss == "kl":
        seen = (student > 0) & (teacher > 0)
        logs = teacher.where(seen, 1.0).log() - student.where(seen, 1.0).log()
        return (teacher * logs).sum(-1).mean(1)
    return relative_error(student, teacher).mean(1)


def relation_loss(student: Tensor, teacher: Tensor, segments: Tensor, loss: str) -> Tensor:
    """Loss between both models' relations of each token to all tokens of its sequence; the widths may differ.

    ``mse``: squared difference of the cosine similarities to those tokens, relative to the square of the
    teacher's; ``kl``: divergence of the student's ``softmax(sqrt(H') cos)`` over them from the teacher's,
    with the teacher's width H' on both sides. That is the relation of MiniLM, ``softmax(h h' / sqrt(H))``, of
    hidden states with a mean square of 1, which a layer norm returns.

    Args:
        student: ``(batch, length, H)``.
        teacher: ``(batch, length, H')``.
        segments: ``(batch, length)``, number of the sequence that a token belongs to, -1 for padding.

    Returns:
        ``(batch, length)``.
    """
    related = segments[:, :, None] == segments[:, None, :]

    def cosines(hidden: Tensor) -> Tensor:
        hidden = F.normalize(widened(hidden), dim=-1)
        return hidden @ hidden.mT

    s, t = cosines(student), cosines(teacher)
    if loss == "mse":
        return relative_error(s.where(related, 0.0), t.where(related, 0.0))
    scale = math.sqrt(teacher.shape[-1])
    s, t = ((scale * x).masked_fill(~related, -math.inf).log_softmax(-1) for x in (s, t))
    return (t.exp() * (t - s).where(related, 0.0)).sum(-1)
