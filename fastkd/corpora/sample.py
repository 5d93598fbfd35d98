"""A sample of the data, without reading all of it: up to 2,000 rows, encoded as the run would encode them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastkd.corpora.settings import TaskSettings
from fastkd.corpora.tasks import Task
from fastkd.corpora.tasks.base import Row

MOST = 2_000


@dataclass(frozen=True)
class Sample:
    """Rows from all over a data set.

    Attributes:
        field: ``train_file`` or ``eval_file``.
        data: the whole data set, whose other rows have not been read.
        layout: the columns that the task reads.
        rows: the chosen rows, with those columns alone.
        encoded: each row as the task encodes it; None if it has nothing to learn or cannot be encoded.
        error: the error of the first row that cannot be encoded; None if all can.
    """

    field: str
    data: Any
    layout: tuple[str, ...]
    rows: list[Row]
    encoded: list[Row | None]
    error: str | None

    @property
    def total(self) -> int:
        return len(self.data)

    @property
    def looked_at(self) -> str:
        """The number of chosen rows and of all rows, as text."""
        if len(self.rows) == self.total:
            return f"all {self.total:,} rows"
        return f"{len(self.rows):,} of {self.total:,} rows"

    @property
    def kept(self) -> list[Row]:
        return [row for row in self.encoded if row is not None]


def look(field: str, data: Any, task: Task, args: TaskSettings, tokenizer: Any) -> Sample:
    """At most ``MOST`` rows of a data set, evenly spread. With ``packing``, documents are not yet packed.

    Args:
        field: ``train_file`` or ``eval_file``, for messages.
        data: the raw rows.
        task, args, tokenizer: those with which the run would encode them.

    Raises:
        ValueError: columns that the task does not read.
    """
    layout = task.layout_of(data.column_names, field)
    step = max(1, -(-len(data) // MOST))
    some = task.prepared(data.select(range(0, len(data), step)).select_columns(list(layout)))
    rows, encoded, error = list(some), [], None
    for row in rows:
        try:
            encoded.append(task.encode(row, layout, tokenizer, args))
        except (ValueError, TypeError, KeyError) as problem:
            encoded.append(None)
            error = error or f"{field}: {problem}"
    return Sample(field, data, layout, rows, encoded, error)
