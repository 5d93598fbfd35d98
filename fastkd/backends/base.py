"""What a backend must offer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastkd.backends.shards import Shards
from fastkd.spec import LossSpec


@dataclass
class SparseRows:
    """A teacher that speaks of ``K`` columns per row, checked and flattened.

    Args:
        indices: ``(rows, K)`` int64, columns of this process's shard; a column of another shard is outside
            ``[0, vocab)``. Entries that do not exist have log-probability -inf and any index.
        logprobs: ``(rows, K)`` of the dtype of the arithmetic.
        tail: ``"renormalize"``, ``"bucket"`` or ``"drop"``, see :class:`fastkd.SparseTeacher`.
        grad: like ``logprobs``, receives the gradient with respect to it; or None.
    """

    indices: Tensor
    logprobs: Tensor
    tail: str
    grad: Tensor | None = None


@dataclass
class Call:
    """The rows of one call, with room for its results. All tensors come checked; outputs come allocated.

    Args:
        student: ``(outer, inner, columns)``, any strides; columns at or past ``spec.vocab_size`` are not
            read.
        teacher: logits of the same rows, or :class:`SparseRows`.
        labels: ``(outer * inner,)`` int64, contiguous, or None. Rows labelled ``spec.ignore_index`` are not
            read; a label outside the vocabulary makes its row NaN (or, with ``shards``, lies in another one).
        loss_scale, grad_scale: ``(outer * inner,)`` float32, or float64 when either input is. Where both are
            0 the row is not read.
        row_loss: of the dtype of ``loss_scale``, becomes ``loss_scale * L``.
        grad_student, grad_teacher: the shape and dtype of their logits, or None; become ``grad_scale *
            dL/dlogits``, 0 past the vocabulary. May share the logits' memory with the same strides.
        metrics: ``(outer * inner, len(METRICS))`` of the dtype of ``loss_scale``, or None; 0 in rows that are
            not read, NaN where the call lacks what a metric needs (labels, a teacher).
        shards: set where the columns are this process's part of a larger vocabulary.
    """

    student: Tensor
    teacher: Tensor | SparseRows
    labels: Tensor | None
    loss_scale: Tensor
    grad_scale: Tensor
    spec: LossSpec
    row_loss: Tensor
    grad_student: Tensor | None = None
    grad_teacher: Tensor | None = None
    metrics: Tensor | None = None
    shards: Shards | None = None

    @property
    def read(self) -> Tensor:
        """``(rows,)`` bool: the rows that are read."""
        read = (self.loss_scale != 0) | (self.grad_scale != 0)
        return read if self.labels is None else read & (self.labels != self.spec.ignore_index)


class Backend(ABC):
    """Row-wise kernels over logits."""

    name: str

    @abstractmethod
    def missing(self, device: torch.device, dtype: torch.dtype | None = None) -> str | None:
        """Why this backend cannot run there and what would mend it; None when it can."""

    def empty(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Uninitialised contiguous memory of the dtype and device of ``like``, for large results."""
        return torch.empty(shape, dtype=like.dtype, device=like.device)

    @abstractmethod
    def rows(self, call: Call) -> None:
        """Fill the results of ``call``."""

    @abstractmethod
    def scale_rows(self, grad: Tensor, factor: Tensor, out: Tensor) -> None:
        """``out[r] = grad[r] * factor[r]`` for ``(rows, columns)`` tensors; ``out`` may be ``grad``.

        ``factor`` is ``(rows,)`` float32 or float64, of any stride. In place, a row whose factor is
        exactly 1 is left alone.
        """
