"""Several teachers: each row has one of them, or all are mixed into one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastkd import SparseTeacher
from fastkd.corpora.tasks import Batch
from fastkd.corpora.tasks.base import ROUTE, Row
from fastkd.trainer.models import NOTHING_MORE, ModelOutput, Requested, multiply_out
from fastkd.trainer.teachers.base import Teacher

# The key of a batch's tensor ``(rows,)`` with the number of each row's teacher.
NUMBERS = "teacher_number"


class SeveralTeachers:
    """Live teachers by name.

    Args:
        teachers: the teachers.
    """

    live = True

    def __init__(self, teachers: Mapping[str, Teacher]) -> None:
        self.teachers = dict(teachers)

    @property
    def columns(self) -> int:
        """The columns that all of them have; the others are padding."""
        return min(teacher.columns for teacher in self.teachers.values())

    def to(self, device: torch.device) -> None:
        for teacher in self.teachers.values():
            teacher.to(device)


class RoutedTeachers(SeveralTeachers):
    """Teachers of which each row of a batch has one. The loss takes them one after another, by :meth:`parts`.

    Args:
        teachers: live teachers by name. A row's number counts them in this order.
    """

    def parts(self, batch: Batch) -> list[tuple[Teacher, Tensor]]:
        """The teachers that have rows in a batch, each with the numbers of its rows.

        Raises:
            ValueError: a batch whose rows name no teacher.
        """
        if NUMBERS not in batch:
            raise ValueError(
                "there are several teachers, and the batch does not say which row has which: give text with "
                "the column that teacher_column names, and leave data_collator unset"
            )
        numbers = batch[NUMBERS]
        found = [
            (teacher, (numbers == i).nonzero().flatten()) for i, teacher in enumerate(self.teachers.values())
        ]
        return [(teacher, rows) for teacher, rows in found if len(rows)]

    def __call__(self, batch: Batch, requested: Requested = NOTHING_MORE) -> ModelOutput | None:
        raise ValueError("several teachers have no distribution in common: the loss asks each for its rows")


def route_numbers(rows: Sequence[Row], batch: Batch) -> Batch:
    """The tensor ``NUMBERS`` of a batch, for a collator; none where the rows have no route."""
    if not all(ROUTE in row for row in rows):
        return {}
    return {NUMBERS: torch.tensor([int(row[ROUTE]) for row in rows])}


def rows_of(batch: Batch, rows: Tensor) -> Batch:
    """Some rows of a batch."""
    count = len(batch["labels"])
    return {
        name: x[rows] if isinstance(x, Tensor) and x.dim() and len(x) == count else x
        for name, x in batch.items()
    }


class MixedTeachers(SeveralTeachers):
    """One teacher that is the mixture of others: its probabilities are the weighted means of theirs, at
    temperature 1.

    Args:
        teachers: teachers that know every token, by name.
        weights: of each, by name; they are divided by their sum.
    """

    def __init__(self, teachers: Mapping[str, Teacher], weights: Mapping[str, float]) -> None:
        super().__init__(teachers)
        total = sum(weights.values())
        self.logs = [
            math.log(weights[name] / total) if weights[name] else -math.inf for name in self.teachers
        ]

    def __call__(self, batch: Batch, requested: Requested = NOTHING_MORE) -> ModelOutput:
        """The logarithms of the mixture's probabilities, as logits ``(rows, length, columns)``."""
        if requested != NOTHING_MORE:
            raise ValueError("a mixture of teachers has no layers: give one teacher")
        mixed: Tensor | None = None
        for (name, teacher), log in zip(self.teachers.items(), self.logs, strict=True):
            if log == -math.inf:
                continue
            found = teacher(batch)
            if found is None or isinstance(found.distribution, SparseTeacher):
                raise ValueError(
                    f"teacher {name} knows only its likeliest tokens, which cannot be mixed exactly"
                )
            logits = multiply_out(found.distribution)[..., : self.columns]
            logits = logits if logits.dtype == torch.float64 else logits.float()
            mine = logits.log_softmax(-1) + log
            mixed = mine if mixed is None else torch.logaddexp(mixed, mine)
        assert mixed is not None  # the weights are not all 0
        return ModelOutput(mixed)


def each_of(teacher: Any) -> dict[str, Teacher]:
    """The teachers that several are made of, by name; the teacher itself, without a name, if it is one."""
    return teacher.teachers if isinstance(teacher, SeveralTeachers) else {"": teacher}
