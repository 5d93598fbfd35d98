"""Reads the reports of a task's runs: each score with its mean and its spread over the seeds."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.tasks.description import Run, Task

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
    """

    run: Run
    reports: list[dict[str, Any]]
    command: str | None

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


def measured(task: Task) -> list[Measured]:
    """The runs of a task, in the order of its description."""
    return [_of(run, task.folder / run.report) for run in task.runs]


def _of(run: Run, place: Path) -> Measured:
    """A run's reports. Where a run was repeated with several seeds, the summary beside them is not read."""
    if place.suffix == ".json":
        whole, seeds = place, []
    else:
        whole, seeds = place / "report.json", sorted(place.glob("seed-*/report.json"), key=_seed)
    head = _read(whole)
    reports = [_read(path) for path in seeds] or [head]
    kept = [report for report in reports if report is not None and _is_whole(report, run.model)]
    first = head if head is not None else kept[0] if kept else {}
    command = first.get("repeat")
    return Measured(run, kept, None if command is None else str(command))


def _seed(path: Path) -> tuple[int, str]:
    name = path.parent.name.removeprefix("seed-")
    return (int(name) if name.isdigit() else 0, name)


def _read(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is no report")
    return found


def _is_whole(report: dict[str, Any], model: str) -> bool:
    """Whether the run has ended, and has the model."""
    ended = "unfinished" not in report and "failed" not in report
    return ended and isinstance(report.get(model), dict)


def _number(part: Any, place: str) -> float | None:
    for name in place.split("."):
        part = part.get(name) if isinstance(part, dict) else None
    numeric = isinstance(part, (int, float)) and not isinstance(part, bool)
    return float(part) if numeric and math.isfinite(part) else None


def distinct(runs: Sequence[Measured], key: str) -> list[dict[str, Any]]:
    """The different values of a report's entry over all runs, for example the machines."""
    found: list[dict[str, Any]] = []
    for run in runs:
        for report in run.reports:
            if (value := report.get(key)) and value not in found:
                found.append(value)
    return found
