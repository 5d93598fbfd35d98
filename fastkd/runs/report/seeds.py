"""Summarises the reports of runs that differ in their seed: means, spreads, and differences by metric."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from fastkd.runs.report.statistics import finite, mean, paired, spread
from fastkd.runs.report.tables import COLUMNS, WRITING, parts

# Metrics of quality, and whether a higher or a lower number is better; None where neither is.
BETTER = {
    "perplexity": "lower", "ce": "lower", "bits_per_byte": "lower", "accuracy": "higher",
    "exact_match": "higher", "micro_f1": "higher", "macro_f1": "higher", "mse": "lower", "mae": "lower",
    "pearson": "higher", "spearman": "higher", "agreement": "higher", "kd": "lower", "entropy": None,
    "student_entropy": None, "bleu": "higher", "chrf": "higher", "rouge1": "higher", "rouge2": "higher",
    "rougeL": "higher", "mean_length": None, "hit_limit": None,
}  # fmt: skip
# Scores by the group of a model's part of the report in which they are.
GROUPS = ("eval", "greedy", "beam")
# A teacher is the same in every run. Its numbers may differ in their last digits, which is no spread.
_SAME = 1e-6


def summary(reports: Mapping[int, dict[str, Any]], failed: Mapping[int, str]) -> dict[str, Any]:
    """The part of a report that several runs have in common.

    Args:
        reports: the report of each seed that has ended.
        failed: the reason for each seed whose training ended with an error.

    Returns:
        For every model its part with means in place of numbers, as in the report of one run; the entries
        beside the models that are the same in all reports, lists apart; and ``seeds`` with ``ended``,
        ``failed``, ``metrics`` (``mean``, ``spread``, ``n`` and ``values`` by seed in place of each number)
        and ``differences`` between student and control (:func:`differences`).
    """
    models = list(dict.fromkeys(name for report in reports.values() for name in parts(report)))
    metrics, means = {}, {}
    for name in models:
        held = {str(seed): report[name] for seed, report in reports.items() if report.get(name)}
        metrics[name] = _spreads(held)
        means[name] = _means(metrics[name]) | _equal({seed: _said(part) for seed, part in held.items()})
    beside = {seed: _beside(report, models) for seed, report in reports.items()}
    return {
        **(_equal(beside) if beside else {}),
        **means,
        "seeds": {
            "ended": list(reports),
            "failed": {str(seed): reason for seed, reason in failed.items()},
            "metrics": metrics,
            "differences": differences(metrics),
        },
    }


def _spreads(held: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Numbers by name, and by group and name, each with its mean, its spread and its values by seed."""
    found: dict[str, Any] = {}
    for key in dict.fromkeys(key for part in held.values() for key in part):
        values = {seed: part.get(key) for seed, part in held.items()}
        groups: dict[str, Any] = {seed: value for seed, value in values.items() if _is_flat(value)}
        if groups:
            found[key] = _spreads(groups)
        elif any(_is_number(value) for value in values.values()) or key in BETTER:
            counted = list(finite(values).values())
            found[key] = {
                "mean": mean(counted) if counted else None,
                "spread": spread(counted),
                "n": len(counted),
                "values": values,
            }
    return found


def _is_flat(value: Any) -> bool:
    return isinstance(value, dict) and not any(isinstance(inner, (dict, list)) for inner in value.values())


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_metric(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"mean", "spread", "n", "values"}


def _means(metrics: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for key, value in metrics.items():
        if not _is_metric(value):
            found[key] = _means(value)
            continue
        distinct = set(value["values"].values())
        found[key] = distinct.pop() if len(distinct) == 1 else value["mean"]
    return found


def _said(part: dict[str, Any]) -> dict[str, Any]:
    """The entries of a model's part that are neither numbers nor groups of them."""
    return {key: value for key, value in part.items() if isinstance(value, (bool, str))}


def _beside(report: dict[str, Any], models: list[str]) -> dict[str, Any]:
    return {key: v for key, v in report.items() if key not in models and not isinstance(v, list)}


def _equal(held: Mapping[Any, dict[str, Any]]) -> dict[str, Any]:
    """The entries that all have, with the same value."""
    first, *others = held.values()
    return {
        key: value
        for key, value in first.items()
        if all(key in other and other[key] == value for other in others)
    }


def heading(group: str, key: str, metrics: Mapping[str, Any]) -> tuple[str, str] | None:
    """The name and the format of a metric that the tables show; None for any other number.

    Args:
        group: ``eval``, ``greedy`` or ``beam``.
        key: its name in the group.
        metrics: those of its model, which know the number of beams.
    """
    columns = COLUMNS if group == "eval" else WRITING
    known = next((column for column in columns if column[0] == key.removeprefix("student_")), None)
    if known is None or key not in BETTER:
        return None
    if group == "eval":
        return known[1], known[2]
    how = "greedy" if group == "greedy" else f"{metrics['beam']['num_beams']['mean']:.0f} beams"
    return f"{known[1]}, {how}", known[2]


def differences(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The differences between the student and its control in every metric of quality that the report shows.

    Returns:
        For each one ``group`` and ``key`` of its place in ``metrics``, its ``name``, which way is ``better``,
        the :class:`fastkd.runs.report.statistics.Difference`, and the ``verdict``: ``better``, ``worse``,
        ``higher`` or ``lower`` (where neither is better), ``within the spread``, or ``one run`` where chance
        cannot be judged of.
    """
    student, control = metrics.get("student", {}), metrics.get("control", {})
    found = []
    for group in GROUPS:
        for key in student.get(group, {}):
            named = heading(group, key, student)
            other = control.get(group, {}).get(key)
            if named is None or other is None:
                continue
            difference = paired(finite(student[group][key]["values"]), finite(other["values"]))
            if difference is None:
                continue
            way = "higher" if difference.mean > 0 else "lower"
            if difference.interval is None:
                verdict = "one run"
            elif not difference.is_beyond_the_spread:
                verdict = "within the spread"
            else:
                verdict = way if BETTER[key] is None else "better" if way == BETTER[key] else "worse"
            found.append(
                {
                    "group": group,
                    "key": key,
                    "name": named[0],
                    "better": BETTER[key],
                    **asdict(difference),
                    "verdict": verdict,
                }
            )
    return found


class Measured(float):
    """A mean that is shown with its spread: ``f"{value:.2f}"`` gives ``8.21 ± 0.07``."""

    spread: float

    def __new__(cls, value: float, spread: float) -> Measured:
        made = super().__new__(cls, value)
        made.spread = spread
        return made

    def __format__(self, form: str) -> str:
        return f"{float(self):{form}} ± {self.spread:{form}}"


def shown(report: dict[str, Any]) -> dict[str, Any]:
    """The report with the spread of several seeds beside each mean of a metric of quality; another report
    as it is.
    """
    known = report.get("seeds")
    if not known:
        return report
    made = dict(report)
    for name, metrics in known["metrics"].items():
        made[name] = dict(report[name])
        for group in GROUPS:
            if group in metrics:
                made[name][group] = report[name][group] | {
                    key: Measured(value["mean"], value["spread"])
                    for key, value in metrics[group].items()
                    if key in BETTER and value["spread"] is not None and (name != "teacher" or _varies(value))
                }
    return made


def _varies(metric: Mapping[str, Any]) -> bool:
    return bool(metric["spread"] > _SAME * abs(metric["mean"]))
