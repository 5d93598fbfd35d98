"""A sample of the data, without reading all of it: up to 2,000 rows, encoded as the run would encode them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastkd.trainer.config import DistillationConfig
from fastkd.trainer.data import class_names, load_rows
from fastkd.trainer.loading import known_classes
from fastkd.trainer.tasks import TASKS
from fastkd.trainer.tasks.base import Row

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


def look(field: str, args: DistillationConfig, tokenizer: Any) -> Sample | None:
    """At most ``MOST`` rows of ``train_file`` or ``eval_file``, evenly spread; None if there is no such data.
    With ``packing``, documents are not yet packed. For classification it sets ``args.class_names`` if unset.

    Raises:
        ValueError: data that cannot be read.
    """
    data = load_rows(field, args)
    if data is None:
        return None
    task = TASKS[args.task]
    if task.name == "classification" and not args.class_names:
        args.class_names = known_classes(args) or class_names(data)
    layout = task.layout_of(data.column_names, field)
    step = max(1, -(-len(data) // MOST))
    some = data.select(range(0, len(data), step)).select_columns(list(layout))
    rows, encoded, error = list(some), [], None
    for row in rows:
        try:
            encoded.append(task.encode(row, layout, tokenizer, args))
        except (ValueError, TypeError, KeyError) as problem:
            encoded.append(None)
            error = error or f"{field}: {problem}"
    return Sample(field, data, layout, rows, encoded, error)
