"""The tables of several seeds, as text and as a section of the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from fastkd.runs.report.curves import NAMES, ROLES
from fastkd.runs.report.dots import Dots, dots
from fastkd.runs.report.seed_verdict import amount, chosen, outcome
from fastkd.runs.report.seeds import heading
from fastkd.runs.report.statistics import finite
from fastkd.runs.report.tables import COLUMNS, DECODINGS, WRITING, Column, Rows

ABOUT = (
    "± after a mean is the sample standard deviation over the seeds, ± after a difference half the width of "
    "its 95 % interval (Student's t, paired by seed). A difference counts if it exceeds both."
)


def outcomes(report: dict[str, Any]) -> str:
    """The verdict on each metric as aligned text; empty without a control."""
    known = report["seeds"]
    lines = []
    for difference in known["differences"]:
        form = _form(report, difference)
        lines.append((difference["name"], outcome(difference, form)))
    width = max((len(name) for name, _ in lines), default=0)
    return "\n".join(f"{name:<{width}}   {said}" for name, said in lines)


def values(report: dict[str, Any]) -> tuple[Rows, Rows]:
    """The rows of every seed: those of :data:`COLUMNS`, and those of :data:`WRITING`."""
    known = report["seeds"]
    plain: Rows = {}
    written: Rows = {}
    for name, metrics in known["metrics"].items():
        if name == "teacher":
            continue
        for seed in map(str, known["ended"]):
            row = _of_seed(metrics, seed)
            for group, inner in metrics.items():
                if group not in DECODINGS and "values" not in inner:
                    row |= _of_seed(inner, seed)
            row["entropy"] = row.get("entropy", row.get("student_entropy"))
            plain[f"{name}, seed {seed}"] = row
            for how in DECODINGS:
                if how in metrics:
                    manner = heading(how, "bleu", metrics)
                    label = how if manner is None else manner[0].partition(", ")[2]
                    written[f"{name}, seed {seed}, {label}"] = _of_seed(metrics[how], seed)
    return plain, written


def _of_seed(metrics: dict[str, Any], seed: str) -> dict[str, Any]:
    return {key: metric["values"].get(seed) for key, metric in metrics.items() if "values" in metric}


def section(report: dict[str, Any], drawn: Callable[[Rows, Sequence[Column]], str]) -> str:
    """The part of the page about the seeds; empty for a report of one run.

    Args:
        report: the report.
        drawn: makes a table of rows in HTML.
    """
    known = report.get("seeds")
    if not known:
        return ""
    plain, written = values(report)
    failures = "".join(
        f"<li>Seed {escape(seed)} failed: {escape(str(reason))}</li>"
        for seed, reason in known["failed"].items()
    )
    made = [
        _differences(report),
        _figure(report),
        drawn(plain, COLUMNS),
        drawn(written, WRITING),
        f'<ul class="notes">{failures}</ul>' if failures else "",
        _folders(known),
    ]
    return "".join(made)


def _differences(report: dict[str, Any]) -> str:
    body = "".join(
        f'<tr><th scope="row">{escape(difference["name"])}</th>'
        f"<td>{escape(amount(difference, _form(report, difference), signed=True))}</td>"
        f"<td>{escape(difference['verdict'])}</td></tr>"
        for difference in report["seeds"]["differences"]
    )
    if not body:
        return ""
    return (
        '<div class="wide"><table class="numbers"><thead><tr><th scope="col">student minus control</th>'
        '<th scope="col">difference</th><th scope="col">verdict</th></tr></thead>'
        f"<tbody>{body}</tbody></table></div><p>{escape(ABOUT)}</p>"
    )


def _form(report: dict[str, Any], difference: dict[str, Any]) -> str:
    found = heading(difference["group"], difference["key"], report["seeds"]["metrics"]["student"])
    assert found is not None
    return found[1]


def _figure(report: dict[str, Any]) -> str:
    place = chosen(report)
    if place is None:
        return ""
    group, key = place
    known = report["seeds"]
    models = []
    level = None
    title, form = "", "{}"
    for name, metrics in known["metrics"].items():
        metric = (metrics.get(group) or {}).get(key)
        named = heading(group, key, metrics) if metric else None
        if metric is None or named is None or metric["mean"] is None:
            continue
        title, form = named
        if name == "teacher":
            level = (f"teacher {form.format(metric['mean'])}", metric["mean"])
        else:
            shown = form.format(metric["mean"])
            aside = "" if metric["spread"] is None else f" ± {form.format(metric['spread'])}"
            models.append(Dots(f"{NAMES[name]} {shown}{aside}", ROLES[name], finite(metric["values"])))
    return dots(title, [str(seed) for seed in known["ended"]], models, level, form.endswith("%}"))


def _folders(known: dict[str, Any]) -> str:
    if not known.get("folders"):
        return ""
    body = "".join(
        f"<li>seed {escape(seed)}: <code>{escape(folder)}</code></li>"
        for seed, folder in known["folders"].items()
    )
    return f'<p>Each seed\'s model, control and report:</p><ul class="notes">{body}</ul>'
