"""Makes a cache of log-probabilities that this process does not compute: those of files or of a server."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from fastkd.corpora.logprobs import Position
from fastkd.corpora.store.encoding import Entries, bytes_per_token, packed
from fastkd.corpora.store.fingerprints import encoded_rows, tokenizer_fingerprint
from fastkd.corpora.store.held import Held, masses_at_1, named
from fastkd.corpora.tasks import IGNORE_INDEX, Task
from fastkd.trainer.config import DistillationConfig


class PositionSource(ABC):
    """The most likely tokens at all targets of some rows, as :class:`CacheSource` has them of a model that is
    run.

    Args:
        task, args, tokenizer: the run's.
        columns: the size of the vocabulary.
        entries: the most log-probabilities of a token.
        teacher_name: the teacher's name in the manifest.
        given_by: the setting that names the files or the server, for messages.
    """

    kind = "topk"
    temperatures = frozenset({1.0})

    def __init__(
        self,
        task: Task,
        args: DistillationConfig,
        tokenizer: Any,
        columns: int,
        entries: int,
        teacher_name: str,
        given_by: str,
    ) -> None:
        self.task, self.args, self.tokenizer = task, args, tokenizer
        self.columns, self.teacher_name, self.given_by = columns, teacher_name, given_by
        self.entries_per_token = min(entries, columns)
        self.bytes_per_token = bytes_per_token("topk", columns, self.entries_per_token, 0, 0, 0)
        self.description = {
            "task": task.name,
            "positions": "logits at i predict label i + 1",
            "tokenizer": tokenizer_fingerprint(tokenizer),
            "columns": columns,
            "cache_top_k": self.entries_per_token,
            "temperature": 1.0,
        }

    @abstractmethod
    def origin(self) -> dict[str, Any]:
        """A digest of the teacher, for the manifest."""

    @abstractmethod
    def found(self, rows: Iterator[Any]) -> Iterator[tuple[Any, Sequence[Position]]]:
        """Each row, and the distributions of all of its tokens but the first."""

    def start(self) -> None:  # noqa: B027  neither files nor a server need it
        """Nothing to prepare."""

    def run(self, rows: Any, first: int, last: int, held: Held, bar: Any = None) -> Iterator[Entries]:
        """The stored form of each row, in order; ``held`` counts what the entries hold."""
        for row, positions in self.found(encoded_rows(rows, self.task, first, last)):
            mask = self.task.targets(torch.tensor(row["labels"])[None])[0] != IGNORE_INDEX
            # The last token has no target.
            pairs = zip(positions, mask.tolist()[:-1], strict=True)
            made = self._encoded([one for one, wanted in pairs if wanted])
            held.tokens += len(made.pages)
            held.entries += len(made.low)
            held.add_masses(named(1.0), masses_at_1(made))
            yield made
            if bar is not None:
                bar.update(1)

    def _encoded(self, positions: list[Position]) -> Entries:
        columns, values = [], []
        for one in positions:
            order = np.argsort(one.columns, kind="stable")
            if len(order) and one.columns[order[-1]] >= self.columns:
                raise ValueError(
                    f"{self.given_by} has token {one.columns[order[-1]]}, and the teacher's vocabulary is "
                    f"{self.columns}: it is another model's, or teacher names another"
                )
            columns.append(one.columns[order])
            values.append(one.logprobs[order])
        each = torch.tensor([len(part) for part in columns], dtype=torch.long)
        found = torch.from_numpy(np.concatenate([*columns, np.empty(0, np.int64)]))
        logprobs = torch.from_numpy(np.concatenate([*values, np.empty(0)])).half()
        return packed(found, logprobs, each, self.columns, self.entries_per_token)
