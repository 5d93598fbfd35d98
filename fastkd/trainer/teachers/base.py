"""The interface of a teacher."""

from __future__ import annotations

from typing import Protocol

import torch

from fastkd.trainer.views import NOTHING_MORE, Batch, View, Wanted


class Teacher(Protocol):
    """A source of distributions. Never an ``nn.Module``: optimizers, checkpoints and wrappers do not see it.

    Attributes:
        columns: width of its distributions, padding included.
        live: whether it can judge any text, the student's own samples among them.
    """

    @property
    def columns(self) -> int: ...

    @property
    def live(self) -> bool: ...

    def to(self, device: torch.device) -> None:
        """Follow the student."""

    def __call__(self, batch: Batch, wanted: Wanted = NOTHING_MORE) -> View | None:
        """The distributions at every position of the batch's targets, without gradients; None where it has
        nothing to say of this batch.
        """
        ...
