"""One side's logits, a chunk of rows at a time, and those that are given."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from fastkd.backends.base import Backend
from fastkd.ops.rows import as_rows


class Logits(Protocol):
    """One side's logits in chunks of rows, and the gradients of what makes them.

    Attributes:
        wanted: whether any gradient is.
    """

    wanted: bool

    def announce(self, runner: Backend) -> None:
        """Tell ``runner`` which memory is going to be written."""

    def forward(self, start: int, stop: int) -> Tensor:
        """Logits ``(1, stop - start, columns)`` of these rows."""

    def gradient(self, start: int, stop: int) -> Tensor | None:
        """Where the row kernel writes the gradient by these rows' logits; None where it is not wanted."""

    def slope(self, logits: Tensor) -> Tensor | None:
        """What :meth:`backward` needs of the logits before they are overwritten; None for nothing."""

    def backward(self, start: int, stop: int, grad: Tensor, slope: Tensor | None) -> None:
        """Take the gradient by these rows' logits further."""

    def finish(self) -> None:
        """Complete the gradients after the last chunk."""


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
        self.wanted = gradient is not None

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

    def slope(self, logits: Tensor) -> Tensor | None:
        """Nothing comes between these logits and what is given."""
        return None

    def backward(self, start: int, stop: int, grad: Tensor, slope: Tensor | None) -> None:
        """The gradient is where it belongs."""

    def finish(self) -> None:
        """Nothing is left to be done."""
