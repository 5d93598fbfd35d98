"""The report as text for the terminal, with the numbers of the page."""

from __future__ import annotations

from typing import Any

from fastkd.runs.report.notes import notes
from fastkd.runs.report.tables import WRITING, rows, table, writing_rows
from fastkd.runs.report.verdict import verdict


def text(report: dict[str, Any]) -> str:
    """The tables, what a reader must know of them, and the result in a sentence."""
    found = [table(rows(report))]
    if written := writing_rows(report):
        found.append(table(written, WRITING))
    if known := notes(report):
        found.append("\n".join(known))
    return "\n\n".join([*found, verdict(report)])
