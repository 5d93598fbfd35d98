"""The loss of a batch from both models' distributions, and what is counted beside it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastkd import HiddenTeacher, SparseTeacher, kd_loss, linear_kd_loss
from fastkd.trainer.tasks import IGNORE_INDEX
from fastkd.trainer.views import Distribution

# Sums over tokens by name, so that batches and processes simply add up. "tokens" is how many there are.
Sums = dict[str, Tensor]


def loss(
    student: Tensor | HiddenTeacher,
    teacher: Distribution | None,
    targets: Tensor,
    options: dict[str, Any],
    **more: Any,
) -> Any:
    """:func:`fastkd.kd_loss` or :func:`fastkd.linear_kd_loss`, by what the student hands out.

    There may be no teacher where ``kd_ratio`` is 0.
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
    student: Tensor | HiddenTeacher,
    teacher: Distribution | None,
    targets: Tensor,
    options: dict[str, Any],
) -> Sums:
    """What a batch reports: ``loss``, ``kd``, ``ce`` (never smoothed), ``student_entropy``, and with a
    teacher ``teacher_entropy``, ``agreement`` (top-1) and, where the teacher gives every token a probability,
    ``teacher_ce``; of a classifier also ``accuracy`` and
    ``teacher_accuracy``. Sums over the valid targets, and their number
    ``tokens``.
    """
    student, teacher = _detached(student), _detached(teacher)
    ratio, smoothing = 0.0 if teacher is None else options["kd_ratio"], options["label_smoothing"]
    # The divergence is measured even where it is no part of the loss.
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


def _detached(given: Any) -> Any:
    if isinstance(given, HiddenTeacher):
        bias = None if given.bias is None else given.bias.detach()
        return replace(given, hidden=given.hidden.detach(), weight=given.weight.detach(), bias=bias)
    return given.detach() if isinstance(given, Tensor) else given


def means(sums: dict[str, float], prefix: str = "") -> dict[str, float]:
    """The sums as the numbers people read."""
    tokens = sums["tokens"]
    found = {name: value / tokens if tokens else math.nan for name, value in sums.items() if name != "tokens"}
    if "accuracy" not in found:  # of a language model
        found["perplexity"] = _perplexity(found["ce"])
        if "teacher_ce" in found:
            found["teacher_perplexity"] = _perplexity(found["teacher_ce"])
    return {f"{prefix}{name}": value for name, value in found.items()}


def _perplexity(cross_entropy: float) -> float:
    return math.exp(cross_entropy) if cross_entropy < 700 else math.inf
