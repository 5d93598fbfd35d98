"""A cache of a teacher behind a URL."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from fastkd.corpora.logprobs import Position
from fastkd.corpora.tasks import Task
from fastkd.runs.cache_positions import PositionSource
from fastkd.served import under_way
from fastkd.trainer.config import DistillationConfig
from fastkd.trainer.teachers import ServedTeacher


class ServedSource(PositionSource):
    """Distributions of rows that a server is asked for.

    Args:
        teacher: the teacher, which is compared with the run first.
        task, args, tokenizer: the run's; ``cache_top_k`` entries of each token are asked for.

    Raises:
        ValueError: a server that cannot teach this run.
    """

    def __init__(self, teacher: ServedTeacher, task: Task, args: DistillationConfig, tokenizer: Any) -> None:
        teacher.check(args, tokenizer)
        self.teacher = teacher
        name = teacher.model.name
        super().__init__(task, args, tokenizer, teacher.columns, args.cache_top_k, name, "the teacher")

    def origin(self) -> dict[str, Any]:
        """A digest of the model's name: the server tells no more of its weights."""
        return {"served": self.teacher.digest()}

    def found(self, rows: Iterator[Any]) -> Iterator[tuple[Any, Sequence[Position]]]:
        """Each row, and its distributions; other rows are asked for meanwhile."""
        ahead = self.teacher.ahead
        for row, ids in under_way(rows, self._asked, self.args.teacher_requests):
            yield row, ahead.take(ids)

    def _asked(self, row: Any) -> list[int]:
        """The tokens of a row, for which the server is asked."""
        ids: list[int] = row["input_ids"].tolist()
        self.teacher.ahead.ask(ids)
        return ids
