"""The interface of a task, and the parts that all tasks share."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastkd.corpora.settings import TaskSettings

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

IGNORE_INDEX = -100
Row = dict[str, Any]
Batch = dict[str, Any]


class Task(ABC):
    """Turns rows into tokens, tokens into batches, and batches into a model's inputs.

    Attributes:
        name: as in the setting ``task``.
        auto_class: the class of ``transformers`` that loads its models.
        layouts: the sets of columns that the task can read, the preferred one first.
        shifts_labels: whether position i of the logits predicts label i + 1 rather than label i.
    """

    name: str
    auto_class: Any
    layouts: tuple[tuple[str, ...], ...]
    shifts_labels = False

    @abstractmethod
    def encode(
        self, row: Row, layout: tuple[str, ...], tokenizer: PreTrainedTokenizerBase, args: TaskSettings
    ) -> Row | None:
        """A row's tokens: ``input_ids``, ``labels``, ``cut`` (whether anything was cut). None for a row with
        nothing to learn, such as an empty one.
        """

    @abstractmethod
    def collate(self, rows: Sequence[Row], pad_token_id: int) -> Batch:
        """Encoded rows as int64 tensors, padded on the right; ``labels`` is -100 where there is no label."""

    @abstractmethod
    def model_inputs(self, model: Any, batch: Batch) -> dict[str, Any]:
        """The keywords of the model's forward."""

    def targets(self, labels: Tensor) -> Tensor:
        """The labels, moved to the positions that predict them."""
        return labels

    def prepared(self, rows: Dataset) -> Dataset:
        """The raw rows in the form that :meth:`encode` reads."""
        return rows

    def check_encoded(self, rows: Dataset, field: str) -> None:  # noqa: B027  most tasks have nothing to check
        """Look over all encoded rows, and raise a ``ValueError`` if nothing can be learned from them."""

    def layout_of(self, columns: Sequence[str], field: str) -> tuple[str, ...]:
        """The first layout whose columns all exist.

        Raises:
            ValueError: no layout has all its columns.
        """
        for layout in self.layouts:
            if set(layout) <= set(columns):
                return layout
        wanted = " or ".join("+".join(layout) for layout in self.layouts)
        example = f"{{{self.layouts[0][0]}: {columns[0] if columns else '...'}}}"
        raise ValueError(
            f"{field} has the columns {', '.join(columns)}, but {self.name} reads {wanted}: "
            f"name them with column_mapping, for example {example}"
        )

    def tokenize(
        self, rows: Dataset, tokenizer: PreTrainedTokenizerBase, args: TaskSettings, field: str
    ) -> Dataset:
        """The text rows in encoded form; logs a warning if texts were cut.

        Raises:
            ValueError: columns that the task does not read, or no text at all.
        """
        layout = self.layout_of(rows.column_names, field)
        rows = self.prepared(rows)

        def encode(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
            count = len(next(iter(batch.values())))
            made = [
                self.encode({name: batch[name][i] for name in layout}, layout, tokenizer, args)
                for i in range(count)
            ]
            kept = [row for row in made if row is not None]
            names = kept[0].keys() if kept else ("input_ids", "labels", "cut")
            return {name: [row[name] for row in kept] for name in names}

        with args.main_process_first(desc=f"tokenizing {field}"):
            found = rows.map(
                encode, batched=True, remove_columns=rows.column_names, desc=f"tokenizing {field}"
            )
        if len(found) == 0:
            raise ValueError(f"{field} holds no text")
        if cut := sum(found["cut"]):
            logger.warning("%s: %d of %d %s", field, cut, len(found), self.what_was_cut(args))
        found = found.remove_columns("cut")
        self.check_encoded(found, field)
        return found

    @abstractmethod
    def what_was_cut(self, args: TaskSettings) -> str: ...


class Collator:
    """A task's ``collate`` as the data collator of a data loader, which can add further columns.

    Args:
        task, pad_token_id: as for :meth:`Task.collate`.
        more: functions that receive the rows and the batch, and return the columns to add to the batch.
    """

    def __init__(
        self,
        task: Task,
        pad_token_id: int,
        more: Sequence[Callable[[Sequence[Row], Batch], Batch]] = (),
    ) -> None:
        self.task, self.pad_token_id, self.more = task, pad_token_id, tuple(more)

    def __call__(self, rows: Sequence[Row]) -> Batch:
        batch = self.task.collate(rows, self.pad_token_id)
        for add in self.more:
            batch.update(add(rows, batch))
        return batch


def pad(sequences: Sequence[Any], value: int) -> Tensor:
    """The sequences as one int64 tensor ``(batch, longest)``, padded on the right."""
    made = torch.full((len(sequences), max(map(len, sequences))), value)
    for i, sequence in enumerate(sequences):
        made[i, : len(sequence)] = torch.as_tensor(sequence)
    return made


def closed(ids: list[int], eos: int | None) -> list[int]:
    """The ids with an end-of-sequence token, which is appended unless they end in one."""
    return ids if eos is None or (ids and ids[-1] == eos) else [*ids, eos]
