"""Students whose vocabulary is part of the teacher's: selects the teacher's columns, a few rows at a time."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastkd.backends.base import Backend
from fastkd.ops.given import Logits
from fastkd.ops.rows import wide


def select(logits: Tensor, columns: Tensor, temperature: float | None) -> Tensor:
    """``logits[..., columns]``, and with a temperature one more column for all others.

    Args:
        logits: ``(..., V_t)``.
        columns: ``(V,)`` int64, without repeats.
        temperature: None, or the temperature of the softmax that gives the last column the probability of all
            others. The result is then float32 or wider, since that column is a sum.
    """
    if temperature is None:
        return logits.index_select(-1, columns)
    logits = logits.to(wide(logits))
    others = logits.index_fill(-1, columns, -math.inf) / temperature
    # If all others are -inf, logsumexp's own gradient would be NaN.
    empty = torch.isneginf(others).all(-1, keepdim=True)
    rest = torch.logsumexp(others.masked_fill(empty, 0.0), -1, keepdim=True).masked_fill(empty, -math.inf)
    return torch.cat([logits.index_select(-1, columns), temperature * rest], -1)


def check_columns(columns: Tensor, teacher: Tensor | None, teacher_weight: Tensor | None) -> None:
    """On a CPU, where this costs no wait, raise if a column is not the teacher's or occurs twice."""
    if columns.device.type != "cpu" or teacher is None:
        return
    width = teacher.shape[-1] if teacher_weight is None else teacher_weight.shape[0]
    outside = (columns < 0) | (columns >= width)
    if bool(outside.any()):
        place = int(outside.to(torch.int8).argmax())
        raise IndexError(f"teacher_columns[{place}] is {int(columns[place])}, outside [0, {width})")
    times = torch.bincount(columns, minlength=width)
    if bool((times > 1).any()):
        raise ValueError(f"teacher_columns has column {int(times.argmax())} more than once")


def copied_bytes(
    student: Tensor,
    teacher: Tensor | None,
    teacher_weight: Tensor | None,
    columns: Tensor | None,
    rest: bool,
) -> tuple[int, int]:
    """Bytes per row that the classes below add to the student's and to the teacher's logits."""
    if columns is None or teacher is None:
        return 0, 0
    wide_row = columns.shape[0] * wide(teacher).itemsize
    if not rest:
        return 0, columns.shape[0] * teacher.element_size()
    width = teacher.shape[-1] if teacher_weight is None else teacher_weight.shape[0]
    # The other columns, their exponentials and their softmax are each as wide as all of the teacher's logits.
    return columns.shape[0] * student.element_size(), wide_row + 3 * width * wide(teacher).itemsize


class SelectedColumns:
    """The teacher's logits in the student's columns, and the gradients of the tensors that produce them.

    Args:
        side: the teacher's logits in all of its columns.
        columns, temperature: as in :func:`select`.
    """

    def __init__(self, side: Logits, columns: Tensor, temperature: float | None) -> None:
        self.side, self.columns, self.temperature = side, columns, temperature
        self.wanted = side.wanted
        self.all: Tensor | None = None
        self.selected: Tensor | None = None

    def announce(self, runner: Backend) -> None:
        self.side.announce(runner)

    def forward(self, start: int, stop: int) -> Tensor:
        """Logits ``(1, stop - start, V)`` of these rows; with a temperature ``V + 1`` columns."""
        self.all = self.side.forward(start, stop)
        self.selected = select(self.all, self.columns, self.temperature)
        return self.selected

    def gradient(self, start: int, stop: int) -> Tensor | None:
        """Where the row kernel writes the gradient of these rows' logits: over the logits."""
        return self.selected if self.wanted else None

    def slope(self, logits: Tensor) -> Tensor | None:
        return None if self.all is None else self.side.slope(self.all)

    def backward(self, start: int, stop: int, grad: Tensor, slope: Tensor | None) -> None:
        into = self.side.gradient(start, stop)
        assert into is not None and self.all is not None and self.selected is not None
        if self.temperature is None:
            into.zero_()
        else:
            # The last column's gradient is divided among the others in proportion to their probabilities.
            by_rest, logits = grad[..., -1:], self.all.to(grad.dtype) / self.temperature
            others = logits.index_fill(-1, self.columns, -math.inf)
            share = torch.softmax(others, -1)
            into.copy_(torch.where((by_rest == 0) | torch.isneginf(others), 0.0, by_rest * share))
            grad = grad[..., :-1]
        into.index_copy_(-1, self.columns, grad.to(into.dtype))
        self.side.backward(start, stop, into, slope)

    def agreement(self, student: Tensor) -> Tensor:
        """Whether the student's most likely column is also that of the whole teacher, ``(rows,)`` bool.

        Args:
            student: ``(1, rows, V + 1)`` logits of the rows of the last :meth:`forward`.
        """
        assert self.all is not None
        top = torch.nn.functional.pad(self.columns, (0, 1), value=-1)[student.argmax(-1)]
        return (top == self.all.argmax(-1))[0]

    def finish(self) -> None:
        self.all = self.selected = None
        self.side.finish()


class WithoutRest:
    """The student's logits and one more column, of no probability, for all of the teacher's other columns.

    Args:
        side: the student's logits.
        vocab: how many of its columns exist.
    """

    def __init__(self, side: Logits, vocab: int) -> None:
        self.side, self.vocab = side, vocab
        self.wanted = side.wanted
        self.logits: Tensor | None = None

    def announce(self, runner: Backend) -> None:
        self.side.announce(runner)

    def forward(self, start: int, stop: int) -> Tensor:
        """Logits ``(1, stop - start, vocab + 1)`` of these rows."""
        found = self.side.forward(start, stop)[..., : self.vocab]
        self.logits = torch.nn.functional.pad(found, (0, 1), value=-math.inf)
        return self.logits

    def gradient(self, start: int, stop: int) -> Tensor | None:
        """Where the row kernel writes the gradient of these rows' logits: over the logits."""
        return self.logits if self.wanted else None

    def slope(self, logits: Tensor) -> Tensor | None:
        return self.side.slope(logits[..., : self.vocab])

    def backward(self, start: int, stop: int, grad: Tensor, slope: Tensor | None) -> None:
        into = self.side.gradient(start, stop)
        assert into is not None
        into[..., : self.vocab] = grad[..., : self.vocab]
        into[..., self.vocab :] = 0
        self.side.backward(start, stop, into, slope)

    def finish(self) -> None:
        self.logits = None
        self.side.finish()
