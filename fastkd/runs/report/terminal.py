"""The report as text for the terminal, with the numbers of the page."""

from __future__ import annotations

from typing import Any

from fastkd.runs.report.notes import notes
from fastkd.runs.report.tables import WRITING, rows, table, writing_rows
from fastkd.runs.report.verdict import verdict


def text(report: dict[str, Any]) -> str:
    """The tables, what a reader must know of them, and the result in a sentence."""
    return f"{tables_text(report)}\n\n{verdict(report)}{warnings_text(report)}"


def tables_text(report: dict[str, Any]) -> str:
    """The tables, and what a reader must know of them."""
    found = [table(rows(report))]
    if written := writing_rows(report):
        found.append(table(written, WRITING))
    if known := notes(report):
        found.append("\n".join(known))
    return "\n\n".join(found)


def warnings_text(report: dict[str, Any]) -> str:
    """The warnings of a report, a line each; empty without any."""
    return "".join(f"\nwarning: {sentence}" for sentence in report.get("warnings") or [])
