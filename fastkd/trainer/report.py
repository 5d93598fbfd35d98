"""``report.json`` and the table at the end of a run."""

from __future__ import annotations

import platform
from typing import Any

import torch
import transformers

import fastkd
from fastkd.trainer.config import DistillationConfig

# key of a row, heading, format
COLUMNS = (
    ("perplexity", "perplexity", "{:.2f}"),
    ("agreement", "agreement", "{:.1%}"),
    ("kd", "kd", "{:.4f}"),
    ("parameters", "parameters", "{:,}"),
    ("seconds_per_step", "s/step", "{:.3f}"),
    ("peak_memory_mb", "peak MB", "{:,.0f}"),
)


def versions() -> dict[str, str]:
    return {
        "fastkd": getattr(fastkd, "__version__", "unknown"),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def settings(args: DistillationConfig) -> dict[str, Any]:
    """The fields that differ from those of an untouched configuration; never a token."""
    untouched = type(args)().to_dict()
    return {k: v for k, v in args.to_dict().items() if v != untouched[k] and not k.endswith("_token")}


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Rows of numbers as aligned text; a column that no row fills is left out."""
    columns = [c for c in COLUMNS if any(row.get(c[0]) is not None for row in rows.values())]
    cells = [["", *(heading for _, heading, _ in columns)]]
    for name, row in rows.items():
        values = [(row.get(key), form) for key, _, form in columns]
        cells.append([name, *("-" if value is None else form.format(value) for value, form in values)])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        line[0].ljust(widths[0])
        + "".join(cell.rjust(width + 3) for cell, width in zip(line[1:], widths[1:], strict=True))
        for line in cells
    )
