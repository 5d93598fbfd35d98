"""Writes the page of results as Markdown."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.tasks.claims import Checked, checked
from bench.tasks.description import Task
from bench.tasks.measured import Measured, Value, distinct
from fastkd.runs.report.tables import COLUMNS, WRITING

_HEAD = """# Results

`python -m bench.tasks {examples} --out {out}` writes this page from the runs' own `report.json`, of which
[`bench/results/tasks`](../bench/results/tasks) keeps the numbers; no number is typed. A score is the mean
over the seeds ± its sample standard deviation; without ± there was one run, or all seeds agree. Training time
is that of the steps alone: their number times the median step. Memory is the largest that the process took
while it trained, and in brackets what `fastkd estimate` had foretold. A statement with "more than the spread"
holds if the difference exceeds the sum of both standard deviations.
"""
# Ways of decoding that a score's place may begin with.
_DECODED = {"greedy": "greedy", "beam": "beam"}


def page(tasks: Sequence[tuple[Task, list[Measured], str | None]], examples: str, out: str) -> str:
    """The whole page.

    Args:
        tasks: each task with its runs and the file name of its picture.
        examples, out: the folders, as the command names them.
    """
    return "\n".join([_HEAD.format(examples=examples, out=out), *(_section(*one, examples) for one in tasks)])


def heading(metric: str) -> tuple[str, str]:
    """A metric's name and its format, as reports show them."""
    group, _, key = metric.rpartition(".")
    for known, title, form in WRITING if group in _DECODED else COLUMNS:
        if known == key:
            return (f"{title}, {_DECODED[group]}" if group in _DECODED else title), form
    return key.replace("_", " "), "{:.4g}"


def shown(value: Value | None, form: str) -> str:
    """A value as text, for example ``81.2% ± 0.4%``."""
    if value is None:
        return "-"
    text = form.format(round(value.mean) if form == "{:,}" else value.mean)
    return text if value.spread is None else f"{text} ± {form.format(value.spread)}"


def _section(task: Task, runs: list[Measured], picture: str | None, examples: str) -> str:
    lines = [f"## {task.title}", "", _wrapped(f"Data: {task.data}"), ""]
    if not any(one.reports for one in runs):
        notes = [task.notes.strip(), ""] if task.notes.strip() else []
        return "\n".join([*lines, "Not run yet.", "", *notes, *_origin(task, runs, examples)])
    lines += [*_table(task, runs), ""]
    missing = [one for one in runs if not one.reports]
    if missing:
        named = ", ".join(f"{one.run.title} (`{task.folder.name}/{one.run.report}`)" for one in missing)
        lines += [_wrapped(f"Missing, because no finished report was found: {named}."), ""]
    if picture is not None and task.picture is not None:
        title = heading(task.picture.metric)[0]
        lines += [f"![{task.title}: {title}]({picture})", ""]
    if caches := list(dict.fromkeys(_cache(one.cache) for one in runs if one.cache is not None)):
        lines += [_wrapped(f"Caches: {'; '.join(caches)}."), ""]
    if task.claims:
        lines += [*map(_claim, checked(task.claims, runs)), ""]
    if task.notes.strip():
        lines += [task.notes.strip(), ""]
    lines += _origin(task, runs, examples)
    return "\n".join(lines)


def _table(task: Task, runs: list[Measured]) -> list[str]:
    metrics = [(metric, *heading(metric)) for metric in task.metrics]
    head = ["run", *(title for _, title, _ in metrics)]
    head += ["seeds", "parameters", _speed_title(runs), "training, minutes", "memory, MB"]
    lines = [head, ["---", *(["---:"] * (len(head) - 1))]]
    for one in runs:
        if not one.reports:
            lines.append([one.run.title, "missing", *([""] * (len(head) - 2))])
            continue
        minutes = one.training_seconds
        lines.append(
            [
                one.run.title,
                *(shown(one.value(metric), form) for metric, _, form in metrics),
                str(len(one.reports)),
                shown(one.value("parameters"), "{:,}"),
                shown(one.speed and Value(one.speed.mean, None, one.speed.count), "{:,}"),
                "-" if minutes is None else f"{minutes.mean / 60:.1f}",
                _memory(one),
            ]
        )
    # A column that no run has a value for is left out.
    kept = [i for i in range(len(head)) if i == 0 or any(line[i] not in ("-", "") for line in lines[2:])]
    return [f"| {' | '.join(line[i].replace('|', chr(92) + '|') for i in kept)} |" for line in lines]


def _memory(one: Measured) -> str:
    peak = one.value("peak_memory_mb")
    if peak is None:
        return "-"
    foretold = one.estimated
    return f"{peak.mean:,.0f}" + ("" if foretold is None else f" ({foretold['peak_memory_mb']:,.0f})")


def _cache(made: dict[str, Any]) -> str:
    """A cache with its size, for example ``out/cache (topk): 131.0 bytes per token, ...``."""
    text = f"`{made['folder']}` ({made['kind']}): {made['bytes_per_token']:.1f} bytes per token"
    if made["entries"] is not None and made["mass"] is not None:
        text += f", {made['entries']:.1f} entries that hold {made['mass']:.1%} of the probability"
    return text


def _claim(one: Checked) -> str:
    """A statement as an item of a list, with its numbers and whether it holds."""
    return textwrap.fill(
        " ".join(f"{_verdict(one)} {one.claim.note}".split()),
        110,
        initial_indent="- ",
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _verdict(one: Checked) -> str:
    claim, form = one.claim, heading(one.claim.metric)[1]
    if one.advantage is None:
        return f"**Not measured**: {claim.title}."
    said = f"{shown(one.own, form)} against {shown(one.other, form)}"
    needed = f"at least {_difference(one.needed, form)}"
    if claim.towards is not None:
        said += f", on the way to {shown(one.goal, form)}: {one.advantage:.0%} of it"
        needed = f"at least {one.needed:.0%}"
    else:
        better = "better" if one.advantage >= 0 else "worse"
        said += f", {_difference(abs(one.advantage), form)} {better}"
        if claim.at_least is None:
            needed = f"more than the spread, {_difference(one.needed, form)}"
        elif one.needed < 0:
            needed = f"at most {_difference(-one.needed, form)} worse"
    if one.holds is None:
        return f"**Not decided**: {claim.title}. {said}; one run of each has no spread."
    return f"**{'Holds' if one.holds else 'Does not hold'}**: {claim.title}. {said} (needed: {needed})."


def _difference(amount: float, form: str) -> str:
    """A difference of two scores; that of percentages in points."""
    return f"{100 * amount:.1f} points" if form.endswith("%}") else form.format(amount)


def _speed_title(runs: list[Measured]) -> str:
    writes = any(one.value("greedy.tokens_per_second") is not None for one in runs)
    return "tokens/s" if writes else "texts/s"


def _origin(task: Task, runs: list[Measured], examples: str) -> list[str]:
    """The commands that reprint the numbers, and the machine and versions that made them."""
    commands = list(dict.fromkeys(one.command for one in runs if one.command is not None))
    lines = ["```sh", f"cd {examples}/{task.folder.name}", task.command, "```", ""]
    if commands:
        lines += ["which runs, among others:", "", "```sh", *commands, "```", ""]
    for what in ("machine", "versions"):
        for known in distinct(runs, what):
            facts = ", ".join(f"{name} {value}" for name, value in known.items())
            lines += [_wrapped(f"{what.capitalize()}: {facts}."), ""]
    return lines


def _wrapped(paragraph: str) -> str:
    return textwrap.fill(paragraph, 110, break_long_words=False, break_on_hyphens=False)


def write(folder: Path, text: str) -> Path:
    """Write the page and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "results.md"
    path.write_text(text.rstrip("\n") + "\n", "utf-8")
    return path
