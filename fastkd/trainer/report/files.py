"""The files that a run leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from fastkd.trainer import checkpoints
from fastkd.trainer.report.page import page
from fastkd.trainer.report.record import now


def write(folder: Path, report: dict[str, Any], name: str = "report") -> Path:
    """``NAME.json``, the same as a page in ``NAME.html``, and ``config.yaml``, which repeats the run.

    Each is written whole or not at all.

    Args:
        folder: where to.
        report: as :func:`fastkd.trainer.report.about` begins it; the time is added as ``written``.
        name: of the files; the configuration of any other than ``report`` is called after it too.

    Returns:
        The JSON file's path.
    """
    report["written"] = now()
    path = folder / f"{name}.json"
    checkpoints.write_json(path, report)
    checkpoints.write_text(folder / f"{name}.html", page(report))
    if report.get("configuration"):
        settings = yaml.safe_dump(report["configuration"], sort_keys=False, allow_unicode=True)
        checkpoints.write_text(
            folder / ("config.yaml" if name == "report" else f"{name}.config.yaml"), settings
        )
    return path
