"""A look at the data without reading all of it: some thousand rows, encoded as the run would encode them."""

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
        data: the whole data set, not read.
        layout: the columns that the task reads.
        rows: the chosen rows, those columns alone.
        encoded: of each, what the task makes of it; None of one that holds nothing to learn.
        error: what the first row that could not be encoded says, None where all could.
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
        """How many of how many rows, in words."""
        if len(self.rows) == self.total:
            return f"all {self.total:,} rows"
        return f"{len(self.rows):,} of {self.total:,} rows"

    @property
    def kept(self) -> list[Row]:
        return [row for row in self.encoded if row is not None]


def look(field: str, args: DistillationConfig, tokenizer: Any) -> Sample | None:
    """At most ``MOST`` rows of ``train_file`` or ``eval_file``, evenly spread; None where there is no such
    data. With ``packing``, documents are not yet packed. Fills in ``args.class_names`` of a classification.

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
