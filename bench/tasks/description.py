"""Reads ``example.yaml``, which describes the runs of a task and what the page shows of them."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

NAME = "example.yaml"
MODELS = ("teacher", "student", "control", "model", "lead")
# Quantities that a curve may be drawn over.
OVER = {"parameters": "parameters", "rows": "labelled rows", "runs": ""}


@dataclass(frozen=True)
class Run:
    """A row of the table.

    Attributes:
        name: by which the picture refers to it.
        title: as the table shows it.
        report: the directory of its ``report.json``, relative to the task's folder. With ``--seeds`` it holds
            the directories ``seed-N``, each with a report of its own.
        model: the part of the report: ``teacher``, ``student``, ``control``, ``model`` for ``fastkd train``,
            or ``lead``, the baseline of summaries.
        rows: number of labelled rows, if a curve is drawn over them.
    """

    name: str
    title: str
    report: str
    model: str
    rows: int | None = None


@dataclass(frozen=True)
class Curve:
    """Runs that one line of the picture joins."""

    title: str
    runs: list[str]


@dataclass(frozen=True)
class Picture:
    """The picture of a task.

    Attributes:
        metric: one of the task's metrics.
        over: ``parameters``, ``rows``, or ``runs``, which sets the curves side by side.
        curves: the curves; a curve of one run is a point.
        lines: runs that are drawn as horizontal lines, for example the teacher and the control.
        beside: a second metric of the same unit, drawn with open markers; None for none.
    """

    metric: str
    over: str
    curves: list[Curve]
    lines: list[str] = field(default_factory=list)
    beside: str | None = None


@dataclass(frozen=True)
class Claim:
    """A statement about two runs that the page checks: the score of one exceeds that of the other.

    The advantage is the difference of the means, positive if ``run`` is better. It must exceed the sum of the
    two spreads, or be at least ``at_least``.

    Attributes:
        title: the statement, without a full stop.
        run, metric: the score that is judged.
        against, against_metric: the score that it is compared with; the same metric by default.
        towards, towards_metric: with these, the advantage is a share: of the way from ``against`` to
            ``towards``, the part that ``run`` has gone.
        at_least: the smallest advantage that bears the statement out, in the metric's unit or as a share.
        lower: whether a lower score is better.
        note: why the statement does not hold, if it does not, or what else there is to know.
    """

    title: str
    run: str
    metric: str
    against: str
    against_metric: str | None = None
    towards: str | None = None
    towards_metric: str | None = None
    at_least: float | None = None
    lower: bool = False
    note: str = ""


@dataclass(frozen=True)
class Task:
    """The content of an ``example.yaml``.

    Attributes:
        folder: where it lies.
        title: heading of the task's section.
        data: what the data is, and its source.
        metrics: scores by their place in a model's part of the report, for example ``eval.accuracy`` or
            ``greedy.bleu``.
        runs: the rows of the table.
        picture: the picture; None for none.
        command: reprints everything, from the task's folder.
        claims: statements that the page checks.
        notes: Markdown below the table, for example why a number falls short.
        order: place on the page, smallest first.
    """

    folder: Path
    title: str
    data: str
    metrics: list[str]
    runs: list[Run]
    picture: Picture | None = None
    command: str = "SEEDS=3 bash run.sh"
    claims: list[Claim] = field(default_factory=list)
    notes: str = ""
    order: int = 0


def tasks_in(examples: Path) -> list[Task]:
    """The tasks that the folders of ``examples`` describe, in the order of the page.

    Raises:
        ValueError: no folder describes one, or a description cannot be read.
    """
    found = [read(path) for path in sorted(examples.glob(f"*/{NAME}"))]
    if not found:
        raise ValueError(f"{examples} has no folder with an {NAME}")
    return sorted(found, key=lambda task: (task.order, task.folder.name))


def read(path: Path) -> Task:
    """One task's description.

    Raises:
        ValueError: unknown or missing fields, or names that refer to nothing.
    """
    try:
        given = yaml.safe_load(path.read_text("utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    where = str(path)
    entries = dict(_checked(Task, {"folder": path.parent, **_mapping(given, where)}, where))
    entries["runs"] = [
        Run(**_checked(Run, one, f"{where}: runs[{i}]"))
        for i, one in enumerate(_list(entries["runs"], where))
    ]
    if entries.get("picture") is not None:
        drawn = dict(_checked(Picture, entries["picture"], f"{where}: picture"))
        drawn["curves"] = [
            Curve(**_checked(Curve, one, f"{where}: picture.curves[{i}]"))
            for i, one in enumerate(_list(drawn["curves"], where))
        ]
        entries["picture"] = Picture(**drawn)
    entries["claims"] = [
        Claim(**_checked(Claim, one, f"{where}: claims[{i}]"))
        for i, one in enumerate(_list(entries.get("claims") or [], where))
    ]
    task = Task(**entries)
    _check_names(task, where)
    return task


def _check_names(task: Task, where: str) -> None:
    names = [run.name for run in task.runs]
    if len(set(names)) < len(names):
        raise ValueError(f"{where}: two runs have the same name")
    for run in task.runs:
        _known(f"{where}: model of the run {run.name}", run.model, MODELS)
    for i, claim in enumerate(task.claims):
        for name in filter(None, (claim.run, claim.against, claim.towards)):
            _known(f"{where}: claims[{i}]", name, names)
        if claim.towards is not None and claim.at_least is None:
            raise ValueError(f"{where}: claims[{i}]: a share needs at_least")
    if (picture := task.picture) is None:
        return
    _known(f"{where}: picture.metric", picture.metric, task.metrics)
    _known(f"{where}: picture.over", picture.over, list(OVER))
    drawn = [name for curve in picture.curves for name in curve.runs]
    for name in [*picture.lines, *drawn]:
        _known(f"{where}: a run of the picture", name, names)
    if picture.over == "rows":
        without = [run.name for run in task.runs if run.name in drawn and run.rows is None]
        if without:
            raise ValueError(f"{where}: the run {without[0]} is drawn over its labelled rows: give it rows")


def _checked(kind: Any, given: Any, where: str) -> dict[str, Any]:
    """The entries of a mapping, if they are the fields of a dataclass."""
    entries = _mapping(given, where)
    known = {one.name: one for one in fields(kind)}
    for name in entries:
        if name not in known:
            raise ValueError(
                f"{where}: unknown field {name!r}; did you mean {_nearest(name, list(known))!r}?"
            )
    for name, one in known.items():
        if name not in entries and one.default is MISSING and one.default_factory is MISSING:
            raise ValueError(f"{where}: the field {name!r} is missing")
    return entries


def _mapping(given: Any, where: str) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise ValueError(f"{where}: expected a mapping, not {given!r}")
    return given


def _list(given: Any, where: str) -> list[Any]:
    if not isinstance(given, list):
        raise ValueError(f"{where}: expected a list, not {given!r}")
    return given


def _known(what: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        raise ValueError(f"{what}: unknown name {name!r}; did you mean {_nearest(name, known)!r}?")


def _nearest(name: Any, known: Sequence[str]) -> str:
    return difflib.get_close_matches(str(name), known, n=1, cutoff=0.0)[0]
