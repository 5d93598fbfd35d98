"""What a run reports beside its loss, summed over tokens so that batches and processes simply add up."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastkd import HiddenTeacher, kd_loss
from fastkd.trainer.heads import row_logits

# Elements of one side's logits that are held at a time.
CHUNK_ELEMENTS = 2**24


@torch.no_grad()
def measure(
    student: Tensor | HiddenTeacher,
    teacher: Tensor | HiddenTeacher | None,
    targets: Tensor,
    options: dict[str, Any],
    vocab_size: int | None,
) -> Tensor:
    """Sums over the valid tokens of a batch, a few rows of logits at a time.

    Args:
        student, teacher: logits ``(..., V)``, or hidden states with their head; without a teacher, what needs
            one is NaN.
        targets: ``(...)`` next tokens, -100 where there is none.
        options: the keywords of the training loss.
        vocab_size: columns that exist on both sides, None for all.

    Returns:
        float32 ``(6,)``: the loss, the divergence, the cross-entropy (never smoothed), the top-1 agreements
        with the teacher, the teacher's cross-entropy, and the number of tokens.
    """
    labels = targets.flatten()
    width = (student if isinstance(student, Tensor) else student.weight.t()).shape[-1]
    step = max(1, CHUNK_ELEMENTS // width)
    ce_only: dict[str, Any] = {"kd_ratio": 0.0, "reduction": "sum", "vocab_size": vocab_size}
    kd_only = {
        **options,
        "kd_ratio": 1.0,
        "label_smoothing": 0.0,
        "reduction": "sum",
        "vocab_size": vocab_size,
    }
    ratio, smoothing = options["kd_ratio"], options["label_smoothing"]
    total = torch.zeros(6, device=labels.device)
    for start in range(0, labels.numel(), step):
        rows = slice(start, start + step)
        some, s = labels[rows], row_logits(student, rows)
        valid = some != -100
        ce = kd_loss(s, s, some, **ce_only)
        loss = ce if smoothing == 0 else kd_loss(s, s, some, label_smoothing=smoothing, **ce_only)
        kd = agreement = teacher_ce = torch.full_like(ce, math.nan)
        if teacher is not None:
            t = row_logits(teacher, rows)
            kd = kd_loss(s, t, some, **kd_only)
            teacher_ce = kd_loss(t, t, some, **ce_only)
            agreement = ((s[:, :vocab_size].argmax(-1) == t[:, :vocab_size].argmax(-1)) & valid).sum()
            loss = loss if ratio == 0 else ratio * kd + (1 - ratio) * loss
        total += torch.stack([x.to(total) for x in (loss, kd, ce, agreement, teacher_ce, valid.sum())])
    return total


def means(sums: Tensor, prefix: str = "") -> dict[str, float]:
    """The sums as the numbers people read; what needs a teacher is left out where there was none."""
    *values, tokens = sums.cpu().double().tolist()
    loss, kd, ce, agreement, teacher_ce = (value / tokens if tokens else math.nan for value in values)
    found = {
        "loss": loss,
        "kd": kd,
        "ce": ce,
        "perplexity": _perplexity(ce),
        "agreement": agreement,
        "teacher_perplexity": _perplexity(teacher_ce),
    }
    without_teacher = {"kd", "agreement", "teacher_perplexity"} if math.isnan(teacher_ce) else set()
    return {f"{prefix}{name}": value for name, value in found.items() if name not in without_teacher}


def _perplexity(cross_entropy: float) -> float:
    return math.exp(cross_entropy) if cross_entropy < 700 else math.inf
