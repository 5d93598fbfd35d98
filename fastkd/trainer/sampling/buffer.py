"""Samples of several steps that were drawn at once, and the data that was read ahead for them."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from fastkd.corpora.tasks import Batch
from fastkd.files import write_text


@dataclass(frozen=True)
class Answered:
    """The prompts of a batch, and the student's answers to them."""

    prompts: list[list[int]]
    completions: list[list[int]]


@dataclass
class Buffer:
    """Samples and data that an on-policy run has ready for later steps.

    Attributes:
        drawn: the answered batches of each later on-policy step, by the step's number.
    """

    drawn: dict[int, list[Answered]] = field(default_factory=dict)
    _read: deque[Batch] = field(default_factory=deque)
    _source: Any = None

    def take(self, source: Iterator[Batch], count: int) -> list[Batch]:
        """The next ``count`` batches of an epoch, in the order of the data; fewer at its end."""
        if self._read and self._source is not source:  # a callback has ended the epoch before
            self.clear()
        taken = [self._read.popleft() for _ in range(min(count, len(self._read)))]
        if not self._read:
            self._source = None  # so that a data loader can end its processes
        return [*taken, *islice(source, count - len(taken))]

    def peek(self, source: Iterator[Batch], skip: int, count: int) -> list[Batch]:
        """The ``count`` batches after the next ``skip`` ones, which :meth:`take` returns later; fewer at the
        end of the epoch.
        """
        self._read.extend(islice(source, max(0, skip + count - len(self._read))))
        self._source = source if self._read else None
        return list(islice(self._read, skip, skip + count))

    def clear(self) -> None:
        """Forget everything."""
        self.drawn.clear()
        self._read.clear()
        self._source = None

    def save(self, path: Path, processes: int) -> None:
        """Write the samples that later steps need; nothing if there are none."""
        if not self.drawn:
            return
        steps = {
            step: [[batch.prompts, batch.completions] for batch in batches]
            for step, batches in self.drawn.items()
        }
        write_text(path, json.dumps({"processes": processes, "steps": steps}))

    def load(self, path: Path, processes: int) -> None:
        """Read the samples of a checkpoint, unless it is one of another number of processes."""
        self.clear()
        if not path.is_file():
            return
        found = json.loads(path.read_text("utf-8"))
        if found["processes"] == processes:
            self.drawn = {
                int(step): [Answered(*batch) for batch in batches] for step, batches in found["steps"].items()
            }
