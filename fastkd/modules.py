"""The losses as modules, for code that builds its losses once."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fastkd.losses import kd_loss, linear_kd_loss
from fastkd.teachers import HiddenTeacher, SparseTeacher


class KDLoss(nn.Module):
    """:func:`fastkd.kd_loss` with its keyword arguments fixed at construction."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def forward(
        self,
        student_logits: Tensor,
        teacher: Tensor | SparseTeacher,
        labels: Tensor | None = None,
        **options: Any,
    ) -> Any:
        """``options`` of a call (``num_items``, ``token_weights``) go over those of the module."""
        return kd_loss(student_logits, teacher, labels, **{**self.options, **options})

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())


class LinearKDLoss(KDLoss):
    """:func:`fastkd.linear_kd_loss` with its keyword arguments fixed at construction."""

    def forward(  # type: ignore[override]
        self,
        student_hidden: Tensor,
        student_weight: Tensor,
        teacher: Tensor | HiddenTeacher | SparseTeacher,
        labels: Tensor | None = None,
        **options: Any,
    ) -> Any:
        return linear_kd_loss(student_hidden, student_weight, teacher, labels, **{**self.options, **options})
