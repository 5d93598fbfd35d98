"""What a loss tells about a batch besides its value."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastkd.spec import METRICS


class KDMetrics(NamedTuple):
    """Means over the valid tokens, 0-d tensors of the loss's dtype, detached; 0 where no token is valid.

    A token is valid when its label is not ``ignore_index`` and its weight not 0. With ``group`` they are
    those of the whole vocabulary.

    Attributes:
        kd: the divergence, with the factor T**2 where the loss has it, without ``kd_ratio`` (measured at
            ``kd_ratio=0``, too). NaN without a teacher.
        ce: cross-entropy with its label smoothing, whatever its share of the loss. NaN without labels.
        student_entropy, teacher_entropy: of q and p, at their temperatures, in nats. The teacher's is NaN
            where there is none; a sparse teacher's is that of what it holds.
        agreement: share of the tokens on which both sides' largest logit is the same. NaN without a
            teacher.
        num_valid: how many tokens the means are over.
    """

    kd: Tensor
    ce: Tensor
    student_entropy: Tensor
    teacher_entropy: Tensor
    agreement: Tensor
    num_valid: Tensor


def mean_metrics(rows: Tensor, valid: Tensor) -> KDMetrics:
    """From ``(tokens, len(METRICS))``, 0 in tokens that are not valid, and ``(tokens,)`` bool."""
    count = valid.sum().to(rows.dtype)
    means = rows.detach().sum(0) / torch.clamp(count, min=1)
    return KDMetrics(**dict(zip(METRICS, means.unbind(0), strict=True)), num_valid=count)
