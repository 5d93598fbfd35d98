"""A sample of the data, without reading all of it: up to 2,000 rows, encoded as the run would encode them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastkd.corpora.local_files import where
from fastkd.corpora.settings import TaskSettings
from fastkd.corpora.spans import Aligner
from fastkd.corpora.tasks import Task
from fastkd.corpora.tasks.base import IGNORE_INDEX, Row, teachers_columns

MOST = 2_000


@dataclass(frozen=True)
class Sample:
    """Rows from all over a data set.

    Attributes:
        field: ``train_file`` or ``eval_file``.
        data: the whole data set, whose other rows have not been read.
        layout: the columns that the task reads.
        unread: the columns that nobody reads.
        needs_answer: whether each row needs an answer, or only a prompt.
        rows: the chosen rows, with those columns alone and the ones beside them that the task reads.
        encoded: each row as the task encodes it, with the teacher's columns if it has a tokenizer of its own;
            None if it has nothing to learn or cannot be encoded.
        more: number of further rows that the chosen ones become, since a conversation can become several.
        error: the error of the first row that cannot be encoded; None if all can.
    """

    field: str
    data: Any
    layout: tuple[str, ...]
    unread: list[str]
    needs_answer: bool
    rows: list[Row]
    encoded: list[Row | None]
    error: str | None
    more: int = 0

    @property
    def total(self) -> int:
        return len(self.data)

    @property
    def becomes(self) -> int:
        """The number of encoded rows, as far as the chosen rows tell: some become several."""
        return self.total + round(self.more * self.total / max(1, len(self.rows)))

    @property
    def looked_at(self) -> str:
        """The number of chosen rows and of all rows, as text."""
        if len(self.rows) == self.total:
            return f"all {self.total:,} rows"
        return f"{len(self.rows):,} of {self.total:,} rows"

    @property
    def kept(self) -> list[Row]:
        return [row for row in self.encoded if row is not None]

    def rows_of_batches(self, args: TaskSettings) -> list[Row]:
        """The encoded rows as batches will hold them: with ``packing``, pieces of ``max_length`` tokens."""
        if not args.packing:
            return self.kept
        pieces = [
            {name: row[name][start : start + args.max_length] for name in ("input_ids", "labels")}
            for row in self.kept
            for start in range(0, len(row["input_ids"]), args.max_length)
        ]
        return [piece for piece in pieces if any(label != IGNORE_INDEX for label in piece["labels"][1:])]


def look(
    field: str,
    data: Any,
    task: Task,
    args: TaskSettings,
    tokenizer: Any,
    needs_answer: bool = True,
    teacher_tokenizer: Any = None,
) -> Sample:
    """At most ``MOST`` rows of a data set, evenly spread. With ``packing``, documents are not yet packed.

    Args:
        field: ``train_file`` or ``eval_file``, for messages.
        data: the raw rows.
        task, args, tokenizer, needs_answer, teacher_tokenizer: those with which the run would encode them.

    Raises:
        ValueError: columns that the task does not read.
    """
    layout = task.layout_of(data.column_names, field, needs_answer)
    of_teacher = teachers_columns(args, field, data.column_names)
    unread = [name for name in task.unread(layout, data.column_names) if name not in of_teacher]
    step = max(1, -(-len(data) // MOST))
    read = task.columns_read(layout, data.column_names)
    some = task.prepared(data.select(range(0, len(data), step)).select_columns(read))
    rows, encoded, error, more = list(some), [], None, 0
    aligner = None
    if teacher_tokenizer is not None:
        aligner = Aligner(tokenizer, teacher_tokenizer, task.shifts_labels)
    for number, row in enumerate(rows):
        try:
            made = task.read(row, layout, tokenizer, args, needs_answer)
            if aligner is not None:
                made = aligner.beside(made, task.read(row, layout, teacher_tokenizer, args, needs_answer))
            encoded.append(made[-1] if made else None)
            more += max(0, len(made) - 1)
        except (ValueError, TypeError, KeyError, AttributeError) as problem:
            encoded.append(None)
            error = error or f"{where(field, number * step, args)}: {problem}"
    return Sample(field, data, layout, unread, needs_answer, rows, encoded, error, more)
