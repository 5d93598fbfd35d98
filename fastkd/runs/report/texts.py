"""The texts of a report's page: answers of all models side by side, and texts that a classifier got wrong."""

from __future__ import annotations

from html import escape
from typing import Any

from fastkd.runs.report.curves import NAMES, ROLES

# Characters of a text that the page shows; the JSON file holds the whole text.
LONGEST_ANSWER = 1500
LONGEST_MISTAKE = 300


def samples(rows: list[dict[str, Any]]) -> str:
    """A source in each article, under it the reference and the answers of each model, in columns.

    Args:
        rows: ``samples`` of the report.
    """
    made = []
    for row in rows:
        columns = [("reference", "", row["reference"])]
        for name, answers in row["answers"].items():
            columns += [
                (f"{NAMES.get(name, name)}, {how}", ROLES.get(name, "other"), said)
                for how, said in answers.items()
            ]
        shown = "".join(_column(*column) for column in columns)
        made.append(
            f"<article><h3>row {escape(str(row['row']))}</h3>"
            f'<p class="source" dir="auto">{escape(_cut(row["source"], LONGEST_ANSWER))}</p>'
            f'<div class="answers">{shown}</div></article>'
        )
    return "".join(made)


def _column(title: str, role: str, said: Any) -> str:
    mark = f'<i class="{role}"></i>' if role else ""
    return f'<div><h4>{mark}{escape(title)}</h4><p dir="auto">{escape(_cut(said, LONGEST_ANSWER))}</p></div>'


def mistakes(rows: list[dict[str, Any]]) -> str:
    """A table of texts with their class and those that the student and the teacher give them.

    Args:
        rows: ``mistakes`` of the report.
    """
    if not rows:
        return ""
    judged = any("teacher" in row for row in rows)
    heads = ["row", "text", "label", "prediction", "probability", *(["teacher"] if judged else [])]
    body = []
    for row in rows:
        cells = [
            row["row"], _cut(row["text"], LONGEST_MISTAKE), row["label"], row["prediction"],
            f"{row['probability']:.1%}", *([row.get("teacher", "-")] if judged else []),
        ]  # fmt: skip
        body.append("<tr>" + "".join(f'<td dir="auto">{escape(str(cell))}</td>' for cell in cells) + "</tr>")
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    return (
        '<p class="when">The mistakes that were made with most certainty come first.</p>'
        f'<div class="wide"><table class="mistakes"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _cut(text: Any, longest: int) -> str:
    text = str(text)
    return text if len(text) <= longest else f"{text[:longest]} ..."
