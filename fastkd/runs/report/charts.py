"""Draws line charts as inline SVG, readable with three points or thirty thousand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

Points = list[tuple[float, float]]

# The most points that are drawn of a line.
DRAWN = 200
WIDTH, HEIGHT = 360.0, 208.0
LEFT, RIGHT, TOP, BOTTOM = 42.0, 10.0, 24.0, 32.0
# The axis is logarithmic if the largest value is at least this many times the smallest.
LOGARITHMIC_FROM = 12.0


@dataclass(frozen=True)
class Line:
    """One series.

    Attributes:
        label: name in the legend.
        role: decides the colour: student, control, teacher or other.
        points: (step, value), steps rising; values that are not finite are not drawn.
        dashed: marks a secondary line of the same colour.
    """

    label: str
    role: str
    points: Points
    dashed: bool = False


@dataclass(frozen=True)
class Chart:
    """One figure.

    Attributes:
        title: heading above the figure.
        axis: label of the vertical axis.
        lines: the lines, in drawing order.
        levels: (label, role, value) of horizontal lines.
        percent: whether values are fractions, to be shown in percent.
        may_be_log: whether a logarithmic axis makes sense.
    """

    title: str
    axis: str
    lines: list[Line]
    levels: list[tuple[str, str, float]] = field(default_factory=list)
    percent: bool = False
    may_be_log: bool = False


@dataclass(frozen=True)
class Drawn:
    """A series as it is drawn: a line, and the (step, lowest, highest) of the band around it."""

    points: Points
    band: list[tuple[float, float, float]] = field(default_factory=list)


def downsample(points: Points, most: int = DRAWN) -> Drawn:
    """Reduces a series of more than ``most`` points to the means of ``most`` equal stretches.

    The band holds the lowest and highest value of each stretch, so that a spike of one step stays visible.
    """
    if len(points) <= most:
        return Drawn(points)
    means, band = [], []
    for i in range(most):
        part = points[i * len(points) // most : (i + 1) * len(points) // most]
        step, values = part[-1][0], [y for _, y in part]
        means.append((step, sum(values) / len(values)))
        band.append((step, min(values), max(values)))
    return Drawn(means, band)


def figure(chart: Chart) -> str:
    """The chart as an HTML ``figure``; empty where there is nothing to draw."""
    lines = [(line, downsample([p for p in line.points if math.isfinite(p[1])])) for line in chart.lines]
    lines = [(line, drawn) for line, drawn in lines if drawn.points]
    levels = [level for level in chart.levels if math.isfinite(level[2])]
    if not lines:
        return ""
    values = [y for _, drawn in lines for _, y in drawn.points] + [value for _, _, value in levels]
    values += [y for _, drawn in lines for _, low, high in drawn.band for y in (low, high)]
    steps = [x for _, drawn in lines for x, _ in drawn.points]
    log = chart.may_be_log and min(values) > 0 and max(values) / min(values) >= LOGARITHMIC_FROM
    across = Axis(min(steps), max(steps), LEFT, WIDTH - RIGHT, exact=True)
    up = Axis(min(values), max(values), HEIGHT - BOTTOM, TOP, log=log)
    axis = f"{chart.axis}, logarithmic" if log else chart.axis
    parts = [_grid(across, up, axis, chart.percent)]
    for _, role, value in levels:
        y = up.place(value)
        parts.append(f'<path class="line level {role}" d="M{LEFT:g} {y:.1f}H{WIDTH - RIGHT:g}"/>')
    parts += [_band(line, drawn, across, up) for line, drawn in lines]
    parts += [_drawn(line, drawn.points, across, up) for line, drawn in lines]
    summary = "; ".join(
        f"{line.label}: {_number(drawn.points[-1][1], chart.percent)} at step {drawn.points[-1][0]:g}"
        for line, drawn in lines
    )
    legend = [
        _key(line.label, line.role, line.dashed, drawn.points[-1][1], chart.percent) for line, drawn in lines
    ]
    legend += [_key(label, role, True, value, chart.percent, fixed=True) for label, role, value in levels]
    last = max(steps)
    return (
        f'<figure data-percent="{int(chart.percent)}"><figcaption><h3>{escape(chart.title)}</h3>'
        f'<span class="at">step <b data-last="{last:g}">{last:,.0f}</b></span></figcaption>'
        f'<svg viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" '
        f'aria-label="{escape(chart.title)}. {escape(summary)}">{"".join(parts)}</svg>'
        f'<ul class="legend">{"".join(legend)}</ul></figure>'
    )


def _band(line: Line, drawn: Drawn, across: Axis, up: Axis) -> str:
    if not drawn.band or line.dashed:
        return ""
    above = [f"{across.place(x):.1f},{up.place(high):.1f}" for x, _, high in drawn.band]
    below = [f"{across.place(x):.1f},{up.place(low):.1f}" for x, low, _ in reversed(drawn.band)]
    return f'<polygon class="band {line.role}" points="{" ".join(above + below)}"/>'


def _drawn(line: Line, points: Points, across: Axis, up: Axis) -> str:
    places = [(across.place(x), up.place(y)) for x, y in points]
    kind = f"{line.role} dashed" if line.dashed else line.role
    # page.js shows the exact values at the pointer.
    exact = " ".join(f"{x:g},{y:.5g}" for x, y in points)
    made = f'<polyline class="line {kind}" data-points="{exact}" points="'
    made += " ".join(f"{x:.1f},{y:.1f}" for x, y in places) + '"/>'
    if len(points) <= 12:
        made += "".join(f'<circle class="{line.role}" cx="{x:.1f}" cy="{y:.1f}" r="2.6"/>' for x, y in places)
    return made


def _key(label: str, role: str, dashed: bool, value: float, percent: bool, fixed: bool = False) -> str:
    stays = "" if fixed else ' class="value"'
    shown = _number(value, percent)
    swatch = f'<i class="{role}{" dashed" if dashed else ""}"></i>'
    return f'<li>{swatch}<span>{escape(label)}</span><b{stays} data-last="{shown}">{shown}</b></li>'


def _number(value: float, percent: bool) -> str:
    return f"{value:.1%}" if percent else f"{value:.4g}"


def _grid(across: Axis, up: Axis, axis: str, percent: bool) -> str:
    made = [vertical(up, axis, percent)]
    made += [below(across.place(value), _short(value)) for value in across.ticks(5) if value == int(value)]
    return "".join(made) + name_below("step")


def vertical(up: Axis, axis: str, percent: bool) -> str:
    """The vertical axis: its name, and its numbers with a horizontal line for each."""
    made = [f'<text x="0" y="11">{escape(axis)}</text>']
    for value in up.ticks(5):
        y = up.place(value)
        made.append(f'<path class="grid" d="M{LEFT:g} {y:.1f}H{WIDTH - RIGHT:g}"/>')
        shown = f"{100 * value:.4g}%" if percent else _short(value)
        made.append(f'<text x="{LEFT - 6:g}" y="{y + 3:.1f}" text-anchor="end">{shown}</text>')
    return "".join(made)


def below(x: float, text: str) -> str:
    """A label of the horizontal axis."""
    return f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 14:g}" text-anchor="middle">{escape(text)}</text>'


def name_below(text: str) -> str:
    """The name of the horizontal axis."""
    middle = (LEFT + WIDTH - RIGHT) / 2
    return f'<text x="{middle:g}" y="{HEIGHT - 4:g}" text-anchor="middle">{escape(text)}</text>'


def _short(value: float) -> str:
    if abs(value) >= 1e6:
        return f"{value / 1e6:.4g}M"
    if abs(value) >= 1e4:
        return f"{value / 1e3:.4g}k"
    if value and abs(value) < 1e-2:
        return f"{value:.3g}".replace("e-0", "e-")
    return f"{value:.4g}"


class Axis:
    """Maps values to coordinates in the SVG.

    Args:
        low, high: the range of the values.
        begin, end: the coordinates of the two ends of the axis.
        log: whether the axis is logarithmic.
        exact: begin at ``low`` and end at ``high``, without a margin.
    """

    def __init__(
        self, low: float, high: float, begin: float, end: float, log: bool = False, exact: bool = False
    ) -> None:
        self.log = log
        low, high = (math.log10(low), math.log10(high)) if log else (low, high)
        if high == low:
            margin = abs(low) / 10 or 1.0
            low, high = (low, low + 1) if exact else (low - margin, high + margin)
        elif not exact:
            margin = 0.04 * (high - low)
            low, high = (max(0.0, low - margin) if low >= 0 and not log else low - margin), high + margin
        self.low, self.high, self.begin, self.end = low, high, begin, end

    def place(self, value: float) -> float:
        value = math.log10(value) if self.log else value
        return self.begin + (value - self.low) / (self.high - self.low) * (self.end - self.begin)

    def ticks(self, count: int) -> Sequence[float]:
        """Round numbers within the range."""
        if self.log:
            lowest, highest = math.floor(self.low), math.ceil(self.high)
            decades = [10.0**power for power in range(lowest, highest + 1)]
            if highest - lowest > count:
                decades = decades[:: math.ceil((highest - lowest) / count)]
            found = [m * d for d in decades for m in ((1, 2, 5) if highest - lowest <= 3 else (1,))]
            return [value for value in found if self.low <= math.log10(value) <= self.high]
        rough = (self.high - self.low) / count
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [round(i * step, 12) for i in range(first, last + 1)]
