"""Reads the records of a task's runs: each score with its mean and its spread over the seeds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.tasks.description import Run, Task
from bench.tasks.records import Record

# A teacher is the same for every seed. Its scores may differ in their last digits, which is no spread.
_SAME = 1e-6


@dataclass(frozen=True)
class Value:
    """A score over the seeds.

    Attributes:
        mean: mean of the seeds that have the score.
        spread: sample standard deviation; None for one seed, or if all are equal.
        count: number of seeds.
    """

    mean: float
    spread: float | None
    count: int


@dataclass(frozen=True)
class Measured:
    """A run and the reports that were found of it.

    Attributes:
        run: the run.
        reports: one report, or one for each seed; empty if the run is missing.
        command: the command that made them.
        estimate: what ``fastkd estimate`` had foretold; None if it was not asked.
        cache: what the teacher's cache holds; None where the teacher was a model.
    """

    run: Run
    reports: list[Record]
    command: str | None
    estimate: dict[str, Any] | None
    cache: dict[str, Any] | None = None

    def value(self, place: str) -> Value | None:
        """The score at a place of the model's part, such as ``eval.accuracy``; None if no report has it."""
        found = [
            score for report in self.reports if (score := _number(report[self.run.model], place)) is not None
        ]
        if not found:
            return None
        mean = statistics.fmean(found)
        spread = statistics.stdev(found) if len(found) > 1 else None
        if spread is not None and spread <= _SAME * abs(mean):
            spread = None
        return Value(mean, spread, len(found))

    @property
    def training_seconds(self) -> Value | None:
        """The time of all steps, from the median step: without evaluations and pauses."""
        steps, each = self.value("steps"), self.value("seconds_per_step")
        if steps is None or each is None:
            return None
        return Value(steps.mean * each.mean, None, each.count)

    @property
    def speed(self) -> Value | None:
        """Tokens per second as the model writes, or a classifier's texts per second."""
        for place in ("greedy.tokens_per_second", "latency.rows_per_second", "rows_per_second"):
            if (found := self.value(place)) is not None:
                return found
        return None

    @property
    def estimated(self) -> dict[str, Any] | None:
        """The estimate of ``fastkd estimate``: ``peak_memory_mb`` and ``seconds_per_step``. It speaks of the
        student, or of the model that ``fastkd train`` trains.
        """
        return self.estimate if self.run.model in ("student", "model") else None


def measured(task: Task, records: dict[str, Record]) -> list[Measured]:
    """The runs of a task, in the order of its description."""
    found = []
    for run in task.runs:
        record = records.get(run.report, {})
        reports = [report for report in record.get("reports", []) if run.model in report]
        found.append(
            Measured(run, reports, record.get("command"), record.get("estimate"), record.get("cache"))
        )
    return found


def _number(part: Any, place: str) -> float | None:
    for name in place.split("."):
        part = part.get(name) if isinstance(part, dict) else None
    return None if part is None else float(part)


def distinct(runs: Sequence[Measured], key: str) -> list[dict[str, Any]]:
    """The different values of a report's entry over all runs, for example the machines."""
    found: list[dict[str, Any]] = []
    for run in runs:
        for report in run.reports:
            if (value := report.get(key)) and value not in found:
                found.append(value)
    return found
