"""Losses between one layer of the student and one of the teacher, with one value for each position.

They are computed in float32 (float64 for float64 inputs). The values of padded positions are meaningless.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def widened(values: Tensor) -> Tensor:
    """The values in float32, or in float64 if they are float64."""
    return values if values.dtype == torch.float64 else values.float()


def hidden_loss(student: Tensor, teacher: Tensor, loss: str) -> Tensor:
    """``mse``: mean over the width of the squared difference; ``cosine``: 1 minus the cosine.

    Args:
        student, teacher: ``(batch, length, H)``, of the same width.

    Returns:
        ``(batch, length)``.
    """
    student, teacher = widened(student), widened(teacher)
    if loss == "cosine":
        return 1 - F.cosine_similarity(student, teacher, dim=-1)
    return (student - teacher).square().mean(-1)


def attention_loss(student: Tensor, teacher: Tensor, loss: str) -> Tensor:
    """Loss between both models' attention weights of each query, averaged over the heads.

    ``mse``: squared difference, averaged over the keys that either model attends to; ``kl``: divergence of
    the student's weights from the teacher's. If the models have different numbers of heads, each model's
    heads are averaged first. A student's maps include its attention dropout: dropped keys have a weight of 0,
    and ``kl`` leaves them out.

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
    seen = (student > 0) | (teacher > 0)
    return ((student - teacher).square().sum(-1) / seen.sum(-1).clamp(min=1)).mean(1)


def relation_loss(student: Tensor, teacher: Tensor, segments: Tensor, loss: str) -> Tensor:
    """Loss between both models' relations of each token to all tokens of its sequence; the widths may differ.

    ``mse``: squared difference of cosine similarities, averaged over those tokens; ``kl``: divergence of the
    student's ``softmax(h h' / sqrt(H))`` over them from the teacher's (MiniLM's relation, applied to hidden
    states).

    Args:
        student: ``(batch, length, H)``.
        teacher: ``(batch, length, H')``.
        segments: ``(batch, length)``, number of the sequence that a token belongs to, -1 for padding.

    Returns:
        ``(batch, length)``.
    """
    related = segments[:, :, None] == segments[:, None, :]

    def relations(hidden: Tensor) -> Tensor:
        hidden = widened(hidden)
        hidden = F.normalize(hidden, dim=-1) if loss == "mse" else hidden / hidden.shape[-1] ** 0.25
        return hidden @ hidden.mT

    s, t = relations(student), relations(teacher)
    if loss == "mse":
        return (s - t).square().where(related, 0.0).sum(-1) / related.sum(-1)
    s, t = (x.masked_fill(~related, -math.inf).log_softmax(-1) for x in (s, t))
    return (t.exp() * (t - s).where(related, 0.0)).sum(-1)
