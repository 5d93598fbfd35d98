"""``use_fastkd(loss)`` for the distillation loss of Sentence Transformers, ``DistillKLDivLoss``."""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor

from fastkd import kd_loss
from fastkd.integrations.common import ancestor, owner, refusal

# The class has moved: its module is the first of these from Sentence Transformers 6 on.
CLASSES = (
    "sentence_transformers.sentence_transformer.losses.distill_kl_div.DistillKLDivLoss",
    "sentence_transformers.losses.DistillKLDivLoss.DistillKLDivLoss",
)
METHOD = "compute_loss_from_embeddings"


def use_fastkd(loss: Any) -> Any:
    """Let a ``DistillKLDivLoss``, or a ``SparseDistillKLDivLoss``, compute its KL divergence with fastkd.

    The value stays ``T_s**2 KL(softmax(labels / T_t), softmax(scores / T_s))``, averaged over the batch.

    Args:
        loss: a loss of Sentence Transformers, which is changed.

    Returns:
        ``loss``.

    Raises:
        Unsupported: another loss, or one whose ``compute_loss_from_embeddings`` is not the library's.
    """
    theirs = next(filter(None, (ancestor(type(loss), name) for name in CLASSES)), None)
    if theirs is None:
        raise refusal("sentence_transformers", f"a {type(loss).__name__}", "pass a DistillKLDivLoss")
    if owner(type(loss), METHOD) is not theirs:
        remedy = "call fastkd.kd_loss there"
        raise refusal("sentence_transformers", f"a {type(loss).__name__} with its own {METHOD}", remedy)
    setattr(loss, METHOD, MethodType(_loss_from_embeddings, loss))
    return loss


def _loss_from_embeddings(loss: Any, embeddings: list[Tensor], labels: Tensor) -> Tensor:
    """The loss of embeddings ``(B, D)`` of a query and its N candidates, with teacher scores ``(B, N)``."""
    query, *others = embeddings
    if len(others) < 2:
        raise refusal("sentence_transformers", "one candidate", "its softmax is constant, add another column")
    scores = torch.stack([loss.similarity_fct(query, other) for other in others], dim=1)
    teacher = labels.detach() if labels.is_floating_point() else labels.float()
    value: Tensor = kd_loss(
        scores,
        teacher,
        temperature=getattr(loss, "student_temperature", loss.temperature),
        teacher_temperature=getattr(loss, "teacher_temperature", loss.temperature),
        reduction="batchmean",
    )
    return value
