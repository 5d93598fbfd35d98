"""The metrics that a loss can return besides its value."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from fastkd.spec import METRICS


class KDMetrics(NamedTuple):
    """Means over the valid tokens, as detached 0-d tensors of the loss's dtype; 0 if no token is valid.

    A token is valid if its label is not ``ignore_index`` and its weight in the loss is not 0. With ``group``
    the metrics are those of the whole vocabulary.

    Attributes:
        kd: the divergence, multiplied by T**2 if the loss does so, but not by ``kd_ratio`` (it is computed at
            ``kd_ratio=0``, too). NaN without a teacher.
        ce: cross-entropy with its label smoothing and class weights, but not multiplied by ``1 - kd_ratio``.
            NaN without labels.
        student_entropy, teacher_entropy: entropies of q and p, at their temperatures, in nats. The teacher's
            is NaN without a teacher; a sparse teacher's is that of its classes (the entries and, with
            ``"bucket"``, the rest).
        agreement: fraction of the tokens on which both sides' largest logit is in the same column. NaN
            without a teacher.
        num_valid: number of valid tokens.
    """

    kd: Tensor
    ce: Tensor
    student_entropy: Tensor
    teacher_entropy: Tensor
    agreement: Tensor
    num_valid: Tensor


def metrics_of(totals: Tensor) -> KDMetrics:
    """From ``(len(METRICS) + 1,)``, see :func:`fastkd.losses.reduction.totals`."""
    return KDMetrics(**dict(zip((*METRICS, "num_valid"), totals.unbind(0), strict=True)))
