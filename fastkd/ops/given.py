"""Logits that are given, seen a chunk of rows at a time as those of a :class:`fastkd.ops.head.Head` are."""

from __future__ import annotations

import torch
from torch import Tensor

from fastkd.backends.base import Backend
from fastkd.ops.rows import as_rows


class GivenLogits:
    """Logits ``(..., V)`` of any strides, and where their gradient goes.

    Args:
        logits: ``(..., V)``.
        gradient: contiguous, like ``logits``, or None; may be ``logits``.
    """

    def __init__(self, logits: Tensor, gradient: Tensor | None) -> None:
        columns = logits.shape[-1]
        # (outer, inner, V), `outer` being 1 wherever strides allow
        self.logits = logits.view(1, -1, columns) if logits.is_contiguous() else as_rows(logits)
        self.by_logits = None if gradient is None else gradient.view(1, -1, columns)
        self.fresh = None if gradient is logits else gradient

    def announce(self, runner: Backend) -> None:
        """Tell ``runner`` which memory is going to be written."""
        runner.about_to_write(self.fresh)

    def forward(self, start: int, stop: int) -> Tensor:
        """Logits ``(1, stop - start, V)`` of these rows, without a copy where one slice holds them."""
        if self.logits.shape[0] == 1:
            return self.logits[:, start:stop]
        inner = self.logits.shape[1]
        index = torch.arange(start, stop, device=self.logits.device)
        return self.logits[index // inner, index % inner][None]

    def gradient(self, start: int, stop: int) -> Tensor | None:
        """Where the gradient by these rows goes."""
        return None if self.by_logits is None else self.by_logits[:, start:stop]
