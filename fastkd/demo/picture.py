"""Draws the picture of a demo: the gain from the teacher, and the cost of the loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import PercentFormatter, ScalarFormatter

INK, FAINT = "#2b2d33", "#d9dbe0"
COLOURS = {"teacher": "#8a8f99", "student": "#0f7b6c", "control": "#d9822b"}
NAMES = {"teacher": "teacher", "student": "student, distilled", "control": "same student, no teacher"}


def draw(report: dict[str, Any], path: Path) -> None:
    """Draw held-out perplexity and agreement over training, and the loss's fraction of a step, as one PNG."""
    style: dict[Any, Any] = {
        "font.size": 10,
        "axes.edgecolor": FAINT,
        "axes.labelcolor": INK,
        "text.color": INK,
    }
    style.update(
        {"xtick.color": INK, "ytick.color": INK, "axes.spines.top": False, "axes.spines.right": False}
    )
    with plt.rc_context(style):
        figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13.5, 4.3), width_ratios=(1.25, 1, 1))
        _curves(left, report, "eval_perplexity", "Perplexity on held-out files (lower is better)")
        left.set_yscale("log")
        left.yaxis.set_major_formatter(ScalarFormatter())
        left.yaxis.set_minor_formatter(ScalarFormatter())
        left.tick_params(axis="y", which="minor", labelsize=8)
        perplexity = report["teacher"]["eval"]["perplexity"]
        left.axhline(perplexity, color=COLOURS["teacher"], linestyle=(0, (4, 3)), linewidth=1.5)
        left.annotate(
            f"teacher {perplexity:.0f}",
            xy=(0, perplexity),
            xycoords=("axes fraction", "data"),
            xytext=(4, 4),
            textcoords="offset points",
            color=COLOURS["teacher"],
        )
        left.legend(frameon=False, loc="upper right")
        _curves(middle, report, "eval_agreement", "Same top choice as the teacher")
        middle.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        _bars(right, report["loss_share"])
        figure.tight_layout(w_pad=3)
        figure.savefig(path, dpi=150)
        plt.close(figure)


def _curves(axes: Any, report: dict[str, Any], key: str, title: str) -> None:
    for name in ("control", "student"):
        points = {entry["step"]: entry[key] for entry in report[name]["history"] if key in entry}
        axes.plot(
            *(list(points), list(points.values())),
            **{
                "color": COLOURS[name],
                "label": NAMES[name],
                "linewidth": 2.2,
                "marker": "o",
                "markersize": 4,
            },
        )
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel("step")
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)


def _bars(axes: Any, shares: dict[str, Any]) -> None:
    labels = ["F.kl_div", "fastkd"]
    parts = [shares["plain"], shares["fastkd"]]
    rest = [part["rest_seconds"] * 1e3 for part in parts]
    loss = [part["loss_seconds"] * 1e3 for part in parts]
    axes.barh(labels, rest, color=FAINT, height=0.55)
    axes.barh(labels, loss, left=rest, color=[COLOURS["control"], COLOURS["student"]], height=0.55)
    for row, (begin, length, part) in enumerate(zip(rest, loss, parts, strict=True)):
        axes.text(begin + length, row, f"  loss {part['share']:.0%}", va="center", fontweight="bold")
    axes.set_xlim(0, 1.25 * max(map(sum, zip(rest, loss, strict=True))))
    axes.set_title("One training step: the loss beside all else", loc="left", fontsize=11)
    axes.set_xlabel("milliseconds (grey: models and optimizer)")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
