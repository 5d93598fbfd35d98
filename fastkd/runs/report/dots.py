"""Draws the values of several runs as dots, one place on the horizontal axis for each run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from fastkd.runs.report.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Axis,
    below,
    name_below,
    vertical,
)

# The distance between the dots of two models at one place, as a share of the distance between two places.
APART = 0.16


@dataclass(frozen=True)
class Dots:
    """The values of one model.

    Attributes:
        label: name in the legend, with the value that it gives.
        role: decides the colour: student or control.
        values: by place on the horizontal axis; a place may be absent.
    """

    label: str
    role: str
    values: Mapping[str, float]


def dots(
    title: str,
    places: Sequence[str],
    models: Sequence[Dots],
    level: tuple[str, float] | None,
    percent: bool,
) -> str:
    """The figure as HTML; empty where there is nothing to draw.

    Args:
        title: heading above the figure, and name of its vertical axis.
        places: the labels of the horizontal axis.
        models: the dots, in drawing order; at each place they are side by side.
        level: label and value of the teacher's horizontal line.
        percent: whether values are fractions, to be shown in percent.
    """
    values = [value for model in models for value in model.values.values()]
    if not values:
        return ""
    across = Axis(-0.5, len(places) - 0.5, LEFT, WIDTH - RIGHT, exact=True)
    values += [] if level is None else [level[1]]
    up = Axis(min(values), max(values), HEIGHT - BOTTOM, TOP)
    parts = [vertical(up, "", percent), name_below("seed")]
    parts += [below(across.place(i), name) for i, name in enumerate(places)]
    if level is not None:
        y = up.place(level[1])
        parts.append(f'<path class="line level teacher" d="M{LEFT:g} {y:.1f}H{WIDTH - RIGHT:g}"/>')
    for number, model in enumerate(models):
        aside = APART * (number - (len(models) - 1) / 2)
        for i, name in enumerate(places):
            if name in model.values:
                x, y = across.place(i + aside), up.place(model.values[name])
                parts.append(f'<circle class="{model.role}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>')
    labels = [(model.label, model.role) for model in models]
    labels += [] if level is None else [(level[0], "teacher dashed")]
    legend = "".join(f'<li><i class="{role}"></i><span>{escape(label)}</span></li>' for label, role in labels)
    summary = "; ".join(label for label, _ in labels)
    return (
        f'<figure class="dots"><figcaption><h3>{escape(title)}</h3></figcaption>'
        f'<svg viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" aria-label="{escape(title)} by seed. '
        f'{escape(summary)}">{"".join(parts)}</svg><ul class="legend">{legend}</ul></figure>'
    )
