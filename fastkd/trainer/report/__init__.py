"""Writes ``report.json``, ``report.html`` and the table at the end of a run."""

from fastkd.trainer.report.files import write
from fastkd.trainer.report.live import Live
from fastkd.trainer.report.page import page
from fastkd.trainer.report.record import about, configuration, settings, untouched, versions
from fastkd.trainer.report.tables import COLUMNS, WRITING, parts, rows, table, teacher_part, writing_rows
from fastkd.trainer.report.verdict import verdict

__all__ = [
    "COLUMNS",
    "WRITING",
    "Live",
    "about",
    "configuration",
    "page",
    "parts",
    "rows",
    "settings",
    "table",
    "teacher_part",
    "untouched",
    "verdict",
    "versions",
    "write",
    "writing_rows",
]
