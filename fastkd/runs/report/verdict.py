"""States the result of a run in a sentence."""

from __future__ import annotations

import math
from typing import Any

from fastkd.runs.report.seed_verdict import seed_verdict
from fastkd.runs.report.tables import Rows, parts, rows

# The figures of answers, with their titles and formats.
WRITTEN = {"bleu": ("BLEU", "{:.1f}"), "chrf": ("chrF", "{:.1f}"), "rougeL": ("ROUGE-L", "{:.3f}")}
# A smaller relative difference between two runs is not called one.
LEVEL = 0.005
# The end of a comparison whose chance nothing in one run tells: only accuracy is judged, by the texts.
ONE_RUN = " One run cannot tell whether another seed would say the same: --seeds repeats it."


def verdict(report: dict[str, Any]) -> str:
    """Compares the student with the control and the teacher, by the figure that fits the task best."""
    if report.get("seeds"):
        return seed_verdict(report)
    if (failure := report.get("failed")) is not None:
        return f"Failed: the {failure['title']}'s training ended with an error: {failure['reason']}"
    table = rows(report)
    name = next((name for name in ("student", "model") if name in table), None)
    if name is None:
        return "There is nothing to report yet."
    if (progress := report.get("unfinished")) is not None:
        return f"Not finished: the {progress['title']} is at step {progress['step']} of {progress['of']}."
    headline = report.get("headline")
    written = None if headline == "perplexity" else _writing(report, name)
    if written is not None:
        return written
    row = table[name]
    if headline == "accuracy" and row.get("accuracy") is not None:
        return _accuracy(table, name)
    if headline == "macro_f1" and row.get("macro_f1") is not None:
        return _score(table, name, "macro_f1", "macro-F1", better="higher")
    if report.get("sequence_level") is not None and headline != "perplexity":
        return (
            f"The {name} was trained on the teacher's answers, and its own were not compared with any "
            "reference: set eval_answers, and eval_file with prompts and answers."
        )
    if row.get("micro_f1") is not None:
        return _score(table, name, "micro_f1", "micro-F1", better="higher")
    if row.get("mse") is not None:
        return _score(table, name, "mse", "mean squared error", better="lower")
    if row.get("accuracy") is not None:
        return _accuracy(table, name)
    if row.get("perplexity") is not None:
        return _perplexity(table, name)
    if row.get("agreement") is not None:  # held-out texts without labels
        return f"The {name} agrees with the teacher on {row['agreement']:.1%} of the held-out texts."
    return f"Trained for {row.get('steps', 0)} steps; its quality is unknown without held-out data."


def _value(table: Rows, name: str, key: str) -> float | None:
    return table.get(name, {}).get(key)


def _perplexity(table: Rows, name: str) -> str:
    own, control, teacher = (_value(table, who, "perplexity") for who in (name, "control", "teacher"))
    assert own is not None
    if math.isnan(own):
        return (
            f"The {name}'s perplexity is not a number: the held-out data has no labels, or the model is NaN."
        )
    aside = "" if teacher is None else f" (the teacher's is {teacher:.2f})"
    if control is None or not math.isfinite(own + control):
        return f"The {name}'s perplexity on held-out data is {own:.2f}{aside}."
    better = 1 - own / control
    if abs(better) < LEVEL:
        how = f"is within {LEVEL:.1%} of that of the same student trained without the teacher"
    else:
        how = f"is {abs(better):.0%} {'lower' if better > 0 else 'higher'} than without the teacher"
    return f"The distilled student's perplexity {how}: {own:.2f} against {control:.2f}{aside}.{ONE_RUN}"


def _score(table: Rows, name: str, key: str, title: str, better: str) -> str:
    own, control, teacher = (_value(table, who, key) for who in (name, "control", "teacher"))
    assert own is not None
    aside = "" if teacher is None else f" (the teacher's is {teacher:.3g})"
    if control is None:
        return f"The {name}'s {title} on held-out texts is {own:.3g}{aside}."
    size = max(abs(own), abs(control))
    if abs(own - control) <= LEVEL * size:
        how = f"is within {LEVEL:.1%} of that of the same student trained without the teacher"
    else:
        how = f"is {'higher' if own > control else 'lower'} than without the teacher"
        how += ", which is better" if (own > control) == (better == "higher") else ", which is worse"
    return f"The distilled student's {title} {how}: {own:.3g} against {control:.3g}{aside}.{ONE_RUN}"


def _accuracy(table: Rows, name: str) -> str:
    own, control, teacher = (_value(table, who, "accuracy") for who in (name, "control", "teacher"))
    assert own is not None
    if math.isnan(own):
        return f"The {name}'s accuracy is not a number: the held-out data has no labels."
    aside = "" if teacher is None else f" (the teacher: {teacher:.1%})"
    if control is None or math.isnan(control):
        return f"The {name} gets {own:.1%} of the held-out texts right{aside}."
    points = 100 * (own - control)
    count = _texts(table[name])
    if count and abs(own - control) <= _by_chance(own, control, count):
        return (
            f"The distilled student gets {own:.1%} of the held-out texts right, the same student without the "
            f"teacher {control:.1%}{aside}: the difference is within chance for {count:,} texts."
        )
    more = "more" if points > 0 else "fewer"
    return (
        f"The distilled student gets {abs(points):.1f} points {more} of the held-out texts right than the "
        f"same student without the teacher: {own:.1%} against {control:.1%}{aside}."
        f"{'' if count else ONE_RUN}"
    )


def _texts(row: dict[str, Any]) -> int:
    return sum(map(sum, row.get("classes", {}).get("confusion", [])))


def _by_chance(one: float, other: float, count: int) -> float:
    """Two standard errors of the difference between two accuracies on ``count`` texts each."""
    return 2 * math.sqrt((one * (1 - one) + other * (1 - other)) / count)


def _writing(report: dict[str, Any], name: str) -> str | None:
    known = parts(report)
    how = "beam" if "beam" in known[name] else "greedy"
    if how not in known[name]:
        return None
    own = known[name][how]
    manner = "greedily" if how == "greedy" else f"with {own['num_beams']} beams"
    key = report.get("headline", "bleu")
    title, form = WRITTEN.get(key, WRITTEN["bleu"])
    key = key if key in WRITTEN else "bleu"
    sentence = f"Decoding {manner}, the {name} reaches {title} {form.format(own[key])}"
    if how == "beam" and "greedy" in known[name]:
        sentence += f" (greedily {form.format(known[name]['greedy'][key])})"
    teacher = known.get("teacher", {}).get(how)
    if teacher and teacher.get(key):
        sentence += f", {own[key] / teacher[key]:.0%} of the teacher's {form.format(teacher[key])}"
    control = known.get("control", {}).get(how)
    if control:
        sentence += f"; without the teacher it is {form.format(control[key])}"
    return f"{sentence}.{ONE_RUN if control else ''}"
