"""Writes ``report.json``, ``report.html`` and the table at the end of a run."""

from fastkd.runs.report.files import write
from fastkd.runs.report.live import Live
from fastkd.runs.report.notes import notes
from fastkd.runs.report.page import page
from fastkd.runs.report.record import about, configuration, settings, untouched, versions
from fastkd.runs.report.seed_tables import outcomes
from fastkd.runs.report.seeds import shown, summary
from fastkd.runs.report.tables import COLUMNS, WRITING, parts, rows, table, teacher_part, writing_rows
from fastkd.runs.report.terminal import tables_text, text, warnings_text
from fastkd.runs.report.verdict import verdict

__all__ = [
    "COLUMNS",
    "WRITING",
    "Live",
    "about",
    "configuration",
    "notes",
    "outcomes",
    "page",
    "parts",
    "rows",
    "settings",
    "shown",
    "summary",
    "table",
    "tables_text",
    "teacher_part",
    "text",
    "untouched",
    "verdict",
    "versions",
    "warnings_text",
    "write",
    "writing_rows",
]
