"""The interface to one side's logits, a chunk of rows at a time, and its form for given logits."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from fastkd.backends.base import Backend
from fastkd.ops.rows import as_rows


class Logits(Protocol):
    """One side's logits in chunks of rows, and the gradients of the tensors that produce them.

    Attributes:
        wanted: whether any of these gradients is wanted.
    """

    wanted: bool

    def announce(self, runner: Backend) -> None:
        """Tell ``runner`` which memory is going to be written."""

    def forward(self, start: int, stop: int) -> Tensor:
        """Logits ``(1, stop - start, columns)`` of these rows."""

    def gradient(self, start: int, stop: int) -> Tensor | None:
        """Where the row kernel writes the gradient of these rows' logits; None if it is not wanted."""

    def slope(self, logits: Tensor) -> Tensor | None:
        """A factor for :meth:`backward`, computed before the logits are overwritten; None for 1."""

    def backward(self, start: int, stop: int, grad: Tensor, slope: Tensor | None) -> None:
        """Propagate the gradient of these rows' logits to the tensors that produced them."""

    def finish(self) -> None:
        """Complete the gradients after the last chunk."""


class GivenLogits:
    """Logits that are inputs of the op, with any strides, and the memory for their gradient.

    Args:
        logits: ``(..., V)``.
        gradient: contiguous, of the shape and dtype of ``logits``, or None; may be ``logits`` itself.
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
        """Logits ``(1, stop - start, V)`` of these rows, without a copy if one slice holds them."""
        if self.logits.shape[0] == 1:
            return self.logits[:, start:stop]
        inner = self.logits.shape[1]
        index = torch.arange(start, stop, device=self.logits.device)
        return self.logits[index // inner, index % inner][None]

    def gradient(self, start: int, stop: int) -> Tensor | None:
        """Where the row kernel writes the gradient of these rows."""
        return None if self.by_logits is None else self.by_logits[:, start:stop]

    def slope(self, logits: Tensor) -> Tensor | None:
        """None: these logits are the input itself."""
        return None

    def backward(self, start: int, stop: int, grad: Tensor, slope: Tensor | None) -> None:
        """Do nothing: the row kernel has already written the result."""

    def finish(self) -> None:
        """Do nothing: the gradient is complete."""
