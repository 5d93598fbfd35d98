"""The loss of a model that predicts numbers: squared errors, from the labels and from the teacher's numbers.

For one output ``s`` of the student, ``t`` of the teacher and ``y`` of the label,

    L = kd_ratio * (s - t)^2 + (1 - kd_ratio) * (s - y)^2

averaged over all outputs of all rows. A row without a label has the first term alone. A number has no
distribution, so there is neither a divergence to choose nor a temperature.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastkd.corpora.labels import IGNORE_INDEX

# Settings that the loss of a regression does not read, with the values that leave them out.
_UNREAD = {
    "divergence": "forward_kl",
    "beta": None,
    "alpha": None,
    "temperature": 1.0,
    "teacher_temperature": None,
    "label_smoothing_factor": 0.0,
    "gradient_match_weight": 0.0,
}


def unread_settings(args: Any) -> str | None:
    """A sentence about settings of distributions, which a regression has none of; None if none is set."""
    given = [f"{name}: {getattr(args, name)}" for name, neutral in _UNREAD.items()
             if getattr(args, name) != neutral]  # fmt: skip
    if not given:
        return None
    return (
        f"{' and '.join(given)} {'is' if len(given) == 1 else 'are'} for distributions, and a regression "
        f"compares numbers by their squared error: leave {'it' if len(given) == 1 else 'them'} out"
    )


def squared_loss(
    student: Tensor,
    teacher: Tensor | None,
    targets: Tensor,
    kd_ratio: float,
    num_items: Tensor | int | None = None,
) -> Tensor:
    """The mean loss over the valid targets.

    Args:
        student, teacher: ``(batch, outputs)`` numbers; the teacher's may be None if ``kd_ratio`` is 0.
        targets: ``(batch,)`` or ``(batch, outputs)``; -100 is masked, and NaN has no label.
        kd_ratio: the teacher's share of the loss.
        num_items: number of targets that count in the batch that this one is a part of; None if it is the
            whole, in which the valid ones count, or with ``kd_ratio`` 0 those with a label.
    """
    student, teacher, labels, valid, known = _aligned(student, teacher, targets)
    total = student.new_zeros(())
    if kd_ratio > 0:
        assert teacher is not None
        total = total + kd_ratio * _squares(student - teacher, valid)
    if kd_ratio < 1:
        total = total + (1 - kd_ratio) * _squares(student - labels, known)
    items = (valid if kd_ratio > 0 else known).sum() if num_items is None else num_items
    return total / torch.as_tensor(items, device=total.device).clamp(min=1)


@torch.no_grad()
def measure_squares(
    student: Tensor, teacher: Tensor | None, targets: Tensor, kd_ratio: float
) -> dict[str, Tensor]:
    """Sums over the valid targets, as :func:`fastkd.trainer.objective.measure` makes them.

    These are ``loss`` and ``mse``; with a teacher also ``kd`` (the squared distance between both models) and
    ``teacher_mse``.
    """
    ratio = 0.0 if teacher is None else kd_ratio
    student, teacher, labels, valid, known = _aligned(student, teacher, targets)
    found = {"tokens": valid.sum().float(), "labelled": known.sum().float()}
    found["counted"] = found["tokens" if ratio > 0 else "labelled"]
    found["mse"] = _squares(student - labels, known)
    if teacher is not None:
        found["kd"] = _squares(student - teacher, valid)
        found["teacher_mse"] = _squares(teacher - labels, known)
    found["loss"] = ratio * found.get("kd", torch.zeros_like(found["mse"])) + (1 - ratio) * found["mse"]
    return {name: value.float() for name, value in found.items()}


def _aligned(
    student: Tensor, teacher: Tensor | None, targets: Tensor
) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor]:
    """Both sides and the labels in one shape and at least float32, the valid targets, and the known ones."""
    dtype = torch.promote_types(student.dtype, torch.float32)
    labels = targets.reshape(student.shape).to(dtype)
    valid = labels != IGNORE_INDEX
    return (
        student.to(dtype),
        None if teacher is None else teacher.to(dtype),
        labels,
        valid,
        valid & ~labels.isnan(),
    )


def _squares(differences: Tensor, mask: Tensor) -> Tensor:
    return differences.where(mask, 0.0).square().sum()
