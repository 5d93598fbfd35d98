"""Makes the tables of a report, with the same numbers and formats on the terminal and on the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Column = tuple[str, str, str]

# key of a row, heading, format
COLUMNS: tuple[Column, ...] = (
    ("perplexity", "perplexity", "{:.2f}"),
    ("perplexity_bound", "perplexity at least", "{:.2f}"),
    ("ce", "cross-entropy", "{:.4f}"),
    ("bits_per_byte", "bits/byte", "{:.4f}"),
    ("accuracy", "accuracy", "{:.1%}"),
    ("exact_match", "all right", "{:.1%}"),
    ("micro_f1", "micro-F1", "{:.3f}"),
    ("macro_f1", "macro-F1", "{:.3f}"),
    ("mse", "mean squared error", "{:.4g}"),
    ("mae", "mean error", "{:.4g}"),
    ("pearson", "Pearson", "{:.3f}"),
    ("spearman", "Spearman", "{:.3f}"),
    ("agreement", "agreement", "{:.1%}"),
    ("kd", "kd", "{:.4f}"),
    ("entropy", "entropy", "{:.3f}"),
    ("parameters", "parameters", "{:,}"),
    ("median_ms", "ms/text", "{:.2f}"),
    ("rows_per_second", "texts/s", "{:,.0f}"),
    ("seconds_per_step", "s/step", "{:.3f}"),
    ("peak_memory_mb", "peak MB", "{:,.0f}"),
)
WRITING: tuple[Column, ...] = (
    ("bleu", "BLEU", "{:.2f}"),
    ("bleu_share", "of teacher", "{:.1%}"),
    ("chrf", "chrF", "{:.2f}"),
    ("rouge1", "ROUGE-1", "{:.3f}"),
    ("rouge2", "ROUGE-2", "{:.3f}"),
    ("rougeL", "ROUGE-L", "{:.3f}"),
    ("exact_match", "exact", "{:.1%}"),
    ("mean_length", "tokens", "{:.1f}"),
    ("hit_limit", "at limit", "{:.1%}"),
    ("tokens_per_second", "tokens/s", "{:,.0f}"),
)
# The models that a report may contain, in display order.
MODELS = ("teacher", "student", "model", "control")
DECODINGS = ("greedy", "beam")
# The teacher's scores in a student's evaluation, where their names begin with ``teacher_``.
OF_TEACHER = (
    *("perplexity", "perplexity_bound", "ce", "ce_bound", "entropy", "accuracy", "macro_f1", "micro_f1"),
    *("exact_match", "mse", "mae", "pearson", "spearman"),
)

Rows = dict[str, dict[str, Any]]


def parts(report: dict[str, Any]) -> Rows:
    """The report's models by name."""
    known = {name: report[name] for name in MODELS if isinstance(report.get(name), dict)}
    return {name: part for name, part in known.items() if any(part.values())}


def rows(report: dict[str, Any]) -> Rows:
    """The models as rows of :data:`COLUMNS`."""
    found = {}
    for name, part in parts(report).items():
        scores = part.get("eval") or {}
        row = {**part, **scores, **(part.get("latency") or {})}
        row["entropy"] = scores.get("entropy", scores.get("student_entropy"))
        found[name] = row
    return found


def writing_rows(report: dict[str, Any]) -> Rows:
    """The models, once for each way of decoding, as rows of :data:`WRITING`."""
    found = {}
    for name, part in parts(report).items():
        for how in DECODINGS:
            if how in part:
                label = "greedy" if how == "greedy" else f"{part[how]['num_beams']} beams"
                found[f"{name}, {label}"] = part[how]
    return found


def teacher_part(scores: dict[str, float], parameters: int | None = None) -> dict[str, Any]:
    """The teacher's part of a report, from the teacher's scores in a student's evaluation.

    Args:
        scores: the evaluation's scores; names may have the prefix ``eval_`` of `transformers`.
        parameters: number of the teacher's parameters; None where the teacher was never loaded.
    """
    known = {name.removeprefix("eval_"): value for name, value in scores.items()}
    found = {ours: known[f"teacher_{ours}"] for ours in OF_TEACHER if f"teacher_{ours}" in known}
    return {"eval": found} if parameters is None else {"parameters": parameters, "eval": found}


def cells(rows: Rows, columns: Sequence[Column] = COLUMNS) -> list[list[str]]:
    """The table as text, headings first; a column without values is left out."""
    shown = [column for column in columns if any(row.get(column[0]) is not None for row in rows.values())]
    found = [["", *(heading for _, heading, _ in shown)]]
    for name, row in rows.items():
        values = [(row.get(key), form) for key, _, form in shown]
        found.append([name, *("-" if value is None else form.format(value) for value, form in values)])
    return found


def table(rows: Rows, columns: Sequence[Column] = COLUMNS) -> str:
    """Rows of numbers as aligned text."""
    lines = cells(rows, columns)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        line[0].ljust(widths[0])
        + "".join(cell.rjust(width + 3) for cell, width in zip(line[1:], widths[1:], strict=True))
        for line in lines
    )
