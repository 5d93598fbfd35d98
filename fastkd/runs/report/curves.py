"""Chooses the curves of a report from the logs of its models."""

from __future__ import annotations

from typing import Any

from fastkd.runs.report.charts import Chart, Line, Points
from fastkd.runs.report.tables import parts

NAMES = {"teacher": "teacher", "student": "student", "model": "model", "control": "without teacher"}
ROLES = {"teacher": "teacher", "student": "student", "model": "student", "control": "control"}
# Logged numbers that have a chart of their own or get none. Any other number of a training step counts as a
# matching loss.
KNOWN = {
    "loss", "kd", "ce", "agreement", "accuracy", "student_entropy", "teacher_entropy", "learning_rate",
    "grad_norm", "epoch", "step", "perplexity", "teacher_perplexity", "teacher_ce", "teacher_accuracy",
    "teacher_ce_bound", "teacher_perplexity_bound",
    "total_flos", "num_input_tokens_seen", "mse", "teacher_mse",
}  # fmt: skip


def charts(report: dict[str, Any]) -> list[Chart]:
    """All charts that have something to show."""
    histories = {name: part["history"] for name, part in parts(report).items() if part.get("history")}
    # The teacher's curve is left out: the demo's teacher trains on other data, for other steps.
    if len(histories) > 1:
        histories.pop("teacher", None)
    teacher = (report.get("teacher") or {}).get("eval") or {}

    def lines(key: str) -> list[Line]:
        found = []
        for name, history in histories.items():
            if points := series(history, key):
                found.append(Line(NAMES[name], ROLES[name], points))
        return found

    def level(key: str) -> list[tuple[str, str, float]]:
        return [("teacher", "teacher", teacher[key])] if teacher.get(key) is not None else []

    entropies = lines("student_entropy")
    for name in ("student", "control"):  # the two differ only where logs are missing or the run resumed
        if points := series(histories.get(name, []), "teacher_entropy"):
            entropies.append(Line("teacher", "teacher", points, dashed=True))
            break
    made = [
        Chart("Held-out perplexity", "perplexity", lines("eval_perplexity"), level("perplexity"),
              may_be_log=True),
        Chart("Held-out accuracy", "share right", lines("eval_accuracy"), level("accuracy"), percent=True),
        Chart("Held-out squared error", "mean squared error", lines("eval_mse"), level("mse"),
              may_be_log=True),
        Chart("Held-out agreement", "same top-1 as the teacher", lines("eval_agreement"), percent=True),
        Chart("Training loss", "each model's own objective", lines("loss"), may_be_log=True),
        Chart("Divergence from the teacher", "kd, nats", lines("kd"), may_be_log=True),
        Chart("Cross-entropy with the labels", "ce, nats", lines("ce"), may_be_log=True),
        Chart("Squared error from the labels", "mean squared error", lines("mse"), may_be_log=True),
        Chart("Training agreement", "same top-1 as the teacher", lines("agreement"), percent=True),
        Chart("Training accuracy", "share right", lines("accuracy"), percent=True),
        Chart("Entropy of the predictions", "nats", entropies),
    ]  # fmt: skip
    others = {
        key for history in histories.values() for entry in history for key in entry if _is_other(entry, key)
    }
    made += [Chart(f"Matching loss: {key}", "loss", lines(key), may_be_log=True) for key in sorted(others)]
    made += [
        Chart("Learning rate", "", lines("learning_rate")[:1]),
        Chart("Gradient norm", "before clipping", lines("grad_norm"), may_be_log=True),
    ]
    return [chart for chart in made if chart.lines]


def series(history: list[dict[str, Any]], key: str) -> Points:
    """The values of one key by step; if a step has several entries, the last counts."""
    found = {
        entry["step"]: float(entry[key])
        for entry in history
        if isinstance(entry.get(key), (int, float)) and isinstance(entry.get("step"), (int, float))
    }
    return sorted(found.items())


def _is_other(entry: dict[str, Any], key: str) -> bool:
    return (
        "loss" in entry
        and key not in KNOWN
        and not key.startswith(("eval_", "train_"))
        and isinstance(entry[key], (int, float))
    )
