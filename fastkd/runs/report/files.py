"""Writes the files of a report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from fastkd import files
from fastkd.runs.report.page import page
from fastkd.runs.report.record import now


def write(folder: Path, report: dict[str, Any], name: str = "report") -> Path:
    """Write ``NAME.json``, the same content as a page in ``NAME.html``, and ``config.yaml`` to repeat a run.

    Each file is written whole or not at all.

    Args:
        folder: the directory of the files.
        report: begins with :func:`fastkd.runs.report.about`; this function adds the time as ``written``.
        name: stem of the file names; for any other than ``report`` the configuration is ``NAME.config.yaml``.

    Returns:
        The JSON file's path.
    """
    report["written"] = now()
    path = folder / f"{name}.json"
    files.write_json(path, report)
    files.write_text(folder / f"{name}.html", page(report))
    if report.get("configuration"):
        settings = yaml.safe_dump(report["configuration"], sort_keys=False, allow_unicode=True)
        files.write_text(folder / ("config.yaml" if name == "report" else f"{name}.config.yaml"), settings)
    return path
