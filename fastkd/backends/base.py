"""What a backend must offer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from fastkd.spec import LossSpec


class Backend(ABC):
    """Row-wise kernels over logits. All tensors come checked; outputs come allocated."""

    name: str

    @abstractmethod
    def missing(self, device: torch.device, dtype: torch.dtype | None = None) -> str | None:
        """Why this backend cannot run there and what would mend it; None when it can."""

    def empty(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Uninitialised contiguous memory of the dtype and device of ``like``, for large results."""
        return torch.empty(shape, dtype=like.dtype, device=like.device)

    @abstractmethod
    def dense_rows(
        self,
        student: Tensor,
        teacher: Tensor,
        labels: Tensor | None,
        loss_scale: Tensor,
        grad_scale: Tensor,
        spec: LossSpec,
        row_loss: Tensor,
        grad_student: Tensor | None,
        grad_teacher: Tensor | None,
    ) -> None:
        """Fill ``row_loss = loss_scale * L`` and gradient rows ``grad_scale * dL/dlogits``.

        Args:
            student, teacher: ``(outer, inner, columns)``, any strides; columns at or past
                ``spec.vocab_size`` are not read.
            labels: ``(outer * inner,)`` int64, contiguous, or None. Rows labelled ``spec.ignore_index``
                are not read; a label outside the vocabulary makes its row NaN.
            loss_scale, grad_scale: ``(outer * inner,)`` float32, or float64 when either input is. Where
                both are 0 the row is not read.
            row_loss: ``(outer * inner,)`` of the dtype of ``loss_scale``.
            grad_student, grad_teacher: the shape and dtype of their logits, or None. May share the
                logits' memory with the same strides.
        """

    @abstractmethod
    def scale_rows(self, grad: Tensor, factor: Tensor, out: Tensor) -> None:
        """``out[r] = grad[r] * factor[r]`` for ``(rows, columns)`` tensors; ``out`` may be ``grad``.

        ``factor`` is ``(rows,)`` float32 or float64, of any stride. In place, a row whose factor is
        exactly 1 is left alone.
        """
