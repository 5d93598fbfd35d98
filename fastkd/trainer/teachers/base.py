"""The interface of a teacher."""

from __future__ import annotations

from typing import Protocol

import torch

from fastkd.corpora.tasks import Batch
from fastkd.trainer.models import NOTHING_MORE, ModelOutput, Requested


class Teacher(Protocol):
    """A source of distributions.

    It is never an ``nn.Module``, so that optimizers, checkpoints and distributed wrappers do not see it.

    Attributes:
        columns: width of its distributions, padding included.
        live: whether it has distributions for any text, including the student's own samples.
    """

    @property
    def columns(self) -> int: ...

    @property
    def live(self) -> bool: ...

    def to(self, device: torch.device) -> None:
        """Move to the student's device."""

    def __call__(self, batch: Batch, requested: Requested = NOTHING_MORE) -> ModelOutput | None:
        """The distributions at every position of the batch's targets; None if the teacher has none for this
        batch. They have a graph only if ``requested.embeddings``, for gradients with respect to the
        embeddings.
        """
        ...
