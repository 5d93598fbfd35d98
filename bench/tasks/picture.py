"""Draws a task's picture: quality against size or labelled rows, with teacher and control as lines."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter, NullLocator

from bench.tasks.description import OVER, Picture, Task
from bench.tasks.measured import Measured, Value
from bench.tasks.page import heading
from fastkd.bench.plot import FAINT, INK, STYLE

COLOURS = ("#0f7b6c", "#d9822b", "#8a5fb0", "#4f7fc0", "#c0504f", "#b59a2d")
DASHES = ("--", ":", "-.", (0, (1, 3)))
# Places whose largest is more than this many times the smallest are drawn logarithmically.
_LOGARITHMIC = 3
# Share of the axis that a label takes.
_LABEL = 0.08


def draw(task: Task, runs: list[Measured], folder: Path) -> str | None:
    """Draw the picture into ``folder``.

    Returns:
        Its file name, or None if the task has no picture or no point of its curves has been measured.
    """
    picture = task.picture
    if picture is None:
        return None
    known = {one.run.name: one for one in runs}
    title, form = heading(picture.metric)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
        places = sorted({x for i in range(len(picture.curves)) for x in _curve(axes, known, picture, i)})
        if not places:
            plt.close(figure)
            return None
        for i, name in enumerate(picture.lines):
            _line(axes, known[name], picture.metric, i)
        if picture.over != "runs" and places[-1] > _LOGARITHMIC * places[0] > 0:
            axes.set_xscale("log")
            axes.xaxis.set_minor_locator(NullLocator())
        if picture.over == "runs":
            titles = [curve.title for curve in picture.curves]
            axes.set_xticks(range(len(titles)), [textwrap.fill(title, 16) for title in titles])
            axes.set_xlim(-0.6, len(titles) - 0.4)
        else:
            axes.set_xticks(_apart(places), [f"{x:,.0f}" for x in _apart(places)])
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: form.format(y)))
        axes.set_xlabel(OVER[picture.over])
        axes.set_ylabel(title if picture.beside is None else title.partition(",")[0])
        axes.set_title(task.title, loc="left")
        axes.grid(axis="y", color=FAINT, linewidth=0.6)
        if axes.get_legend_handles_labels()[1]:
            axes.legend(frameon=False, fontsize=9)
        name = f"results-{task.folder.name}.png"
        folder.mkdir(parents=True, exist_ok=True)
        # Without the version in the file, equal reports give equal bytes.
        figure.savefig(folder / name, dpi=120, metadata={"Software": None})
        plt.close(figure)
    return name


def _apart(places: list[float]) -> list[float]:
    """Places that are far enough apart for their labels."""
    logarithmic = places[-1] > _LOGARITHMIC * places[0] > 0
    shares = [math.log(x) if logarithmic else x for x in places]
    kept = [0]
    for i, share in enumerate(shares):
        if share - shares[kept[-1]] > _LABEL * (shares[-1] - shares[0]):
            kept.append(i)
    return [places[i] for i in kept]


def _curve(axes: Any, known: dict[str, Measured], picture: Picture, i: int) -> list[float]:
    """Draw one curve, and return the places of its points. Missing runs leave a gap."""
    found: list[float] = []
    for metric in filter(None, (picture.metric, picture.beside)):
        points = _points(known, picture, metric, i)
        if points:
            open_marker = (
                {"markerfacecolor": "white", "linestyle": "none"} if metric == picture.beside else {}
            )
            axes.errorbar(
                [x for x, _ in points],
                [y.mean for _, y in points],
                yerr=[y.spread or 0.0 for _, y in points],
                color=COLOURS[i % len(COLOURS)],
                marker="o",
                markersize=5,
                capsize=3,
                label=_label(picture, metric, i),
                **open_marker,
            )
        found += [x for x, _ in points]
    return found


def _points(known: dict[str, Measured], picture: Picture, metric: str, i: int) -> list[tuple[float, Value]]:
    """The places and the scores of a curve, from left to right."""
    points: list[tuple[float, Value]] = []
    for name in picture.curves[i].runs:
        one = known[name]
        x = one.value("parameters") if picture.over == "parameters" else None
        place = None if x is None else x.mean
        if picture.over != "parameters":
            place = one.run.rows if picture.over == "rows" else i
        if (y := one.value(metric)) is not None and place is not None:
            points.append((float(place), y))
    return sorted(points, key=lambda point: point[0])


def _label(picture: Picture, metric: str, i: int) -> str | None:
    """The curve's entry in the legend. Curves that stand side by side are named below the axis."""
    if picture.over != "runs":
        return picture.curves[i].title if metric == picture.metric else None
    return heading(metric)[0] if picture.beside is not None and i == 0 else None


def _line(axes: Any, one: Measured, metric: str, i: int) -> None:
    """Draw one run as a horizontal line with its spread around it."""
    y = one.value(metric)
    if y is not None:
        axes.axhline(y.mean, color=INK, linewidth=1.1, linestyle=DASHES[i % len(DASHES)], label=one.run.title)
        if y.spread is not None:
            axes.axhspan(y.mean - y.spread, y.mean + y.spread, color=FAINT, alpha=0.5, linewidth=0)
