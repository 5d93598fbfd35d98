"""A cache of a teacher behind a URL."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from fastkd.corpora.logprobs import Position
from fastkd.corpora.tasks import Task
from fastkd.runs.cache_positions import PositionSource
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
        """Each row, and its distributions. Twice as many rows are asked for as the server may have at a time,
        so that it always has work.
        """
        ahead, waiting = self.teacher.ahead, deque[Any]()
        for row in rows:
            ahead.ask(row["input_ids"].tolist())
            waiting.append(row)
            if len(waiting) >= 2 * self.args.teacher_requests:
                yield self._taken(waiting.popleft())
        while waiting:
            yield self._taken(waiting.popleft())

    def _taken(self, row: Any) -> tuple[Any, Sequence[Position]]:
        return row, self.teacher.ahead.take(row["input_ids"].tolist())
