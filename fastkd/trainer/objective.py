"""The loss of a batch from both models' distributions, and the sums that are reported with it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastkd import SparseTeacher, kd_loss, linear_kd_loss
from fastkd.corpora.tasks import IGNORE_INDEX
from fastkd.trainer.models import Distribution, HiddenLogits, detach

# Sums over tokens by name, so that batches and processes can be added. "tokens" is the number of tokens.
Sums = dict[str, Tensor]


def loss(
    student: Tensor | HiddenLogits,
    teacher: Distribution | None,
    targets: Tensor,
    options: dict[str, Any],
    **more: Any,
) -> Any:
    """:func:`fastkd.kd_loss` for a student's logits, :func:`fastkd.linear_kd_loss` for its hidden states.

    The teacher may be None if ``kd_ratio`` is 0.
    """
    options = {**options, **more}
    if isinstance(student, Tensor):
        return kd_loss(student, teacher, targets, **options)
    return linear_kd_loss(
        student.hidden,
        student.weight,
        teacher,
        targets,
        student_bias=student.bias,
        logit_scale=student.logit_scale,
        logit_softcap=student.logit_softcap,
        **options,
    )


@torch.no_grad()
def measure(
    student: Tensor | HiddenLogits,
    teacher: Distribution | None,
    targets: Tensor,
    options: dict[str, Any],
) -> Sums:
    """The metrics of a batch, as sums over its valid targets, and the number of those, ``tokens``.

    These are ``loss``, ``ce`` (never smoothed) and ``student_entropy``; with a teacher also ``kd``,
    ``teacher_entropy``, ``agreement`` (top-1) and, if the teacher gives every token a probability,
    ``teacher_ce``; for a classifier also ``accuracy`` and, if the teacher gives logits, ``teacher_accuracy``.
    """
    student = detach(student)
    teacher = None if teacher is None else detach(teacher)
    ratio, smoothing = 0.0 if teacher is None else options["kd_ratio"], options["label_smoothing"]
    # The divergence is measured even if it is not part of the loss.
    both = {**options, "label_smoothing": 0.0, "kd_ratio": ratio}
    _, metrics = loss(student, teacher, targets, both, return_metrics=True)
    found = {"kd": metrics.kd, "ce": metrics.ce, "student_entropy": metrics.student_entropy}
    found |= {"teacher_entropy": metrics.teacher_entropy, "agreement": metrics.agreement}
    smooth = metrics.ce
    ce_only = {"kd_ratio": 0.0, "vocab_size": options["vocab_size"]}
    if smoothing:
        smooth = loss(student, None, targets, {**ce_only, "label_smoothing": smoothing})
    found["loss"] = smooth if ratio == 0 else ratio * metrics.kd + (1 - ratio) * smooth
    if teacher is None:
        for name in ("kd", "teacher_entropy", "agreement"):
            del found[name]
    elif not isinstance(teacher, SparseTeacher):
        found["teacher_ce"] = loss(teacher, None, targets, ce_only)
    if isinstance(student, Tensor) and student.dim() == 2:
        valid = targets != IGNORE_INDEX
        right = (student.argmax(-1) == targets) & valid
        found["accuracy"] = right.sum() / valid.sum().clamp(min=1)
        if isinstance(teacher, Tensor):
            right = (teacher.argmax(-1) == targets) & valid
            found["teacher_accuracy"] = right.sum() / valid.sum().clamp(min=1)
    count = metrics.num_valid.float()
    return {**{name: value.float() * count for name, value in found.items()}, "tokens": count}


def means(sums: dict[str, float], prefix: str = "") -> dict[str, float]:
    """The means to report, from the sums; language models also get perplexities."""
    tokens = sums["tokens"]
    found = {name: value / tokens if tokens else math.nan for name, value in sums.items() if name != "tokens"}
    if "accuracy" not in found:  # of a language model
        found["perplexity"] = _perplexity(found["ce"])
        if "teacher_ce" in found:
            found["teacher_perplexity"] = _perplexity(found["teacher_ce"])
    return {f"{prefix}{name}": value for name, value in found.items()}


def _perplexity(cross_entropy: float) -> float:
    return math.inf if cross_entropy >= 700 else math.exp(cross_entropy)  # NaN stays NaN
