"""States the result of the runs of several seeds in sentences."""

from __future__ import annotations

from typing import Any

from fastkd.runs.report.seeds import heading
from fastkd.runs.report.statistics import finite
from fastkd.trainer.seeds import named_seeds

# The metric that the headline states is the first of these that the student has, unless the reports name one.
HEADLINES = (
    ("beam", "bleu"),
    ("greedy", "bleu"),
    ("eval", "micro_f1"),
    ("eval", "mse"),
    ("eval", "accuracy"),
    ("eval", "perplexity"),
    ("eval", "agreement"),
)


def seed_verdict(report: dict[str, Any]) -> str:
    """Compares the student with its control by the metric that fits the task best, and names the seeds that
    are missing, failed, or have no such number. A difference that does not exceed the spread of the seeds is
    no difference.
    """
    known = report["seeds"]
    said = [_headline(report), *_exceptions(known)]
    if waiting := known.get("waiting"):
        said.insert(0, f"Not finished: {named_seeds(waiting)} to come.")
    return " ".join(filter(None, said))


def chosen(report: dict[str, Any]) -> tuple[str, str] | None:
    """The group and the key of the headline's metric; None without held-out data."""
    metrics = report["seeds"]["metrics"]
    own = metrics.get("student") or metrics.get("model") or {}
    named = [(group, str(report.get("headline"))) for group in ("beam", "greedy", "eval")]
    return next((place for place in (*named, *HEADLINES) if (own.get(place[0]) or {}).get(place[1])), None)


def runs(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"


def outcome(difference: dict[str, Any], form: str) -> str:
    """The difference of a metric in words: ``lower by 2.00 ± 0.31, which is better``.

    Args:
        difference: one of those in the report.
        form: the format of the metric.
    """
    count = len(difference["values"])
    if difference["verdict"] == "one run":
        return "one run cannot tell whether another seed would say the same"
    if difference["verdict"] == "within the spread":
        return f"no difference beyond the spread of {runs(count)} ({amount(difference, form, signed=True)})"
    way = "higher" if difference["mean"] > 0 else "lower"
    said = f"{way} by {amount(difference, form)}"
    return said if difference["better"] is None else f"{said}, which is {difference['verdict']}"


def amount(difference: dict[str, Any], form: str, signed: bool = False) -> str:
    """A difference with its uncertainty; that of percentages in points."""
    value, interval = difference["mean"], difference["interval"]
    unit = ""
    if form.endswith("%}"):
        value, form, unit = 100 * value, "{:.1f}", " points"
        interval = None if interval is None else 100 * interval
    shown = form.format(value if signed else abs(value))
    sign = "+" if signed and value > 0 else ""
    return f"{sign}{shown}{unit}" if interval is None else f"{sign}{shown} ± {form.format(interval)}{unit}"


def _headline(report: dict[str, Any]) -> str:
    known = report["seeds"]
    metrics, ended = known["metrics"], len(known["ended"])
    if not ended:
        return "No seed has ended yet." if known.get("waiting") else "Failed: no seed's training ended well."
    place = chosen(report)
    if place is None:
        return f"Trained with {runs(ended)}; the quality is unknown without held-out data."
    group, key = place
    name = "student" if "student" in metrics else "model"
    if report.get("sequence_level") and key == "perplexity" and report.get("headline") != "perplexity":
        return (
            f"The {name} was trained on the teacher's answers with {runs(ended)}, and its own answers were "
            "not compared with any reference."
        )
    found = heading(group, key, metrics[name])
    assert found is not None
    measure, _, how = found[0].partition(", ")
    title, form = f"{measure} ({how})" if how else measure, found[1]
    own, control, teacher = (
        (metrics.get(who, {}).get(group) or {}).get(key) or {"mean": None}
        for who in (name, "control", "teacher")
    )
    if own["mean"] is None:
        return f"The {name}'s {title} is not a finite number with any seed."
    aside = f" (the teacher's is {form.format(teacher['mean'])})" if teacher["mean"] is not None else ""
    over = f"Over {runs(own['n'])}, the"
    if control["mean"] is None:
        return f"{over} {name}'s {title} is {_spread(own, form)}{aside}."
    said = f"{over} distilled student's {title} is {_spread(own, form)}, without the teacher "
    said += f"{_spread(control, form)}{aside}"
    difference = next((d for d in known["differences"] if (d["group"], d["key"]) == place), None)
    return f"{said}." if difference is None else f"{said}: {outcome(difference, form)}."


def _spread(metric: dict[str, Any], form: str) -> str:
    shown = form.format(metric["mean"])
    return shown if metric["spread"] is None else f"{shown} ± {form.format(metric['spread'])}"


def _exceptions(known: dict[str, Any]) -> list[str]:
    """Sentences about the seeds that do not count, or not in every metric."""
    said = []
    if failed := sorted(map(int, known["failed"])):
        verbs = "failed and does" if len(failed) == 1 else "failed and do"
        said.append(f"{_capital(named_seeds(failed))} {verbs} not count.")
    names: dict[tuple[int, ...], list[str]] = {}
    for who, metrics in known["metrics"].items():
        for group in ("eval", "greedy", "beam"):
            for key, metric in metrics.get(group, {}).items():
                named = heading(group, key, metrics)
                bad = tuple(int(seed) for seed in metric["values"] if seed not in finite(metric["values"]))
                if named is not None and bad and metric["n"]:
                    names.setdefault(bad, []).append(f"{who}'s {named[0]}")
    for bad, metrics in names.items():
        verb = "has" if len(bad) == 1 else "have"
        said.append(f"{_capital(named_seeds(list(bad)))} {verb} no finite {', '.join(metrics)}.")
    return said


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
