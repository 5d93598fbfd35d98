"""A teacher that numbers its classes in another order than the student."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fastkd import SparseTeacher
from fastkd.corpora.tasks import Batch
from fastkd.trainer.models import NOTHING_MORE, Distribution, ModelOutput, Requested
from fastkd.trainer.teachers.base import Teacher
from fastkd.trainer.teachers.crossed import CrossedTeacher
from fastkd.trainer.teachers.prompted import PromptedTeacher


def plain_teacher(teacher: Teacher | None) -> Teacher | None:
    """The teacher itself, without the order in which its classes are read and the prompts or tokens that it
    reads.
    """
    wrappers = (ReorderedTeacher, PromptedTeacher, CrossedTeacher)
    return teacher.teacher if isinstance(teacher, wrappers) else teacher


class ReorderedTeacher:
    """Another teacher, with its classes in the student's order.

    Args:
        teacher: gives logits, or entries from a cache.
        order: for each class of the student its column of the teacher.
        dimension: the dimension of the distributions that the classes are in: -1, or -2 of a multi-label
            teacher, which has two columns for each label.
    """

    def __init__(self, teacher: Teacher, order: Sequence[int], dimension: int = -1) -> None:
        self.teacher, self.dimension = teacher, dimension
        self.columns, self.live = len(order), teacher.live
        self.order = torch.tensor(list(order))

    def to(self, device: torch.device) -> None:
        self.teacher.to(device)
        self.order = self.order.to(device)

    def __call__(self, batch: Batch, requested: Requested = NOTHING_MORE) -> ModelOutput | None:
        found = self.teacher(batch, requested)
        return None if found is None else replace(found, distribution=self._moved(found.distribution))

    def _moved(self, given: Distribution) -> Distribution:
        if isinstance(given, SparseTeacher):
            order = self.order.to(given.indices.device)
            if self.dimension == -1:  # the columns are named by the entries
                places = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)).to(order))
                return SparseTeacher(places[given.indices], given.logprobs, given.tail)
            indices, logprobs = (
                x.index_select(self.dimension, order) for x in (given.indices, given.logprobs)
            )
            return SparseTeacher(indices, logprobs, given.tail)
        assert isinstance(given, Tensor)  # a classifier's loss is never fused with its head
        return given.index_select(self.dimension, self.order.to(given.device))
