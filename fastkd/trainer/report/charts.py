"""Line charts as inline SVG: readable with three points or thirty thousand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

Points = list[tuple[float, float]]

# Points of a line that are drawn; of longer ones, the extremes of equal stretches of steps.
DRAWN = 240
WIDTH, HEIGHT = 360.0, 196.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 10.0, 8.0, 34.0
# A logarithmic axis from this ratio of the largest to the smallest value on.
LOGARITHMIC_FROM = 12.0


@dataclass(frozen=True)
class Line:
    """One series.

    Attributes:
        label: in the legend.
        role: its colour: student, control, teacher or other.
        points: (step, value), steps rising; values that are not finite are left out of the drawing.
        dashed: the secondary ones of a colour.
    """

    label: str
    role: str
    points: Points
    dashed: bool = False


@dataclass(frozen=True)
class Chart:
    """A figure.

    Attributes:
        title: what it shows.
        axis: what the vertical axis counts.
        lines: drawn in this order.
        levels: (label, role, value) of constants.
        percent: values are shares.
        may_be_log: whether a logarithmic axis makes sense.
    """

    title: str
    axis: str
    lines: list[Line]
    levels: list[tuple[str, str, float]] = field(default_factory=list)
    percent: bool = False
    may_be_log: bool = False


def downsample(points: Points, most: int = DRAWN) -> Points:
    """At most ``most`` points: the first, the last, and the lowest and highest of equal stretches between.

    So a spike of one step stays visible.
    """
    if len(points) <= most:
        return points
    inner = points[1:-1]
    stretches = (most - 2) // 2
    found = [points[0]]
    for i in range(stretches):
        part = inner[i * len(inner) // stretches : (i + 1) * len(inner) // stretches]
        ends = {min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])}
        found += sorted(ends)
    return [*found, points[-1]]


def figure(chart: Chart) -> str:
    """The chart as an HTML ``figure``; empty where there is nothing to draw."""
    lines = [(line, downsample([p for p in line.points if math.isfinite(p[1])])) for line in chart.lines]
    lines = [(line, points) for line, points in lines if points]
    levels = [level for level in chart.levels if math.isfinite(level[2])]
    if not lines:
        return ""
    values = [y for _, points in lines for _, y in points] + [value for _, _, value in levels]
    steps = [x for _, points in lines for x, _ in points]
    log = chart.may_be_log and min(values) > 0 and max(values) / min(values) >= LOGARITHMIC_FROM
    across = _Axis(min(steps), max(steps), LEFT, WIDTH - RIGHT, exact=True)
    up = _Axis(min(values), max(values), HEIGHT - BOTTOM, TOP, log=log)
    axis = f"{chart.axis}, logarithmic" if log else chart.axis
    parts = [_grid(across, up, axis, chart.percent)]
    for _, role, value in levels:
        y = up.place(value)
        parts.append(f'<path class="line level {role}" d="M{LEFT:g} {y:.1f}H{WIDTH - RIGHT:g}"/>')
    for line, points in lines:
        parts.append(_drawn(line, points, across, up))
    summary = "; ".join(
        f"{line.label}: {_number(points[-1][1], chart.percent)} at step {points[-1][0]:g}"
        for line, points in lines
    )
    legend = [
        _key(line.label, line.role, line.dashed, points[-1][1], chart.percent) for line, points in lines
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


def _drawn(line: Line, points: Points, across: _Axis, up: _Axis) -> str:
    places = [(across.place(x), up.place(y)) for x, y in points]
    kind = f"{line.role} dashed" if line.dashed else line.role
    # The exact values, for the pointer.
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


def _grid(across: _Axis, up: _Axis, axis: str, percent: bool) -> str:
    made = []
    for value in up.ticks(5):
        y = up.place(value)
        made.append(f'<path class="grid" d="M{LEFT:g} {y:.1f}H{WIDTH - RIGHT:g}"/>')
        shown = f"{100 * value:.4g}%" if percent else _short(value)
        made.append(f'<text x="{LEFT - 6:g}" y="{y + 3:.1f}" text-anchor="end">{shown}</text>')
    for value in across.ticks(5):
        if value == int(value):
            x = across.place(value)
            made.append(
                f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 14:g}" text-anchor="middle">{_short(value)}</text>'
            )
    middle, bottom = (LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2
    made.append(f'<text class="axis" x="{middle:g}" y="{HEIGHT - 5:g}" text-anchor="middle">step</text>')
    made.append(
        f'<text class="axis" transform="translate(9 {bottom:g}) rotate(-90)" text-anchor="middle">'
        f"{escape(axis)}</text>"
    )
    return "".join(made)


def _short(value: float) -> str:
    if abs(value) >= 1e6:
        return f"{value / 1e6:.4g}M"
    if abs(value) >= 1e4:
        return f"{value / 1e3:.4g}k"
    if value and abs(value) < 1e-3:
        return f"{value:.3g}".replace("e-0", "e-")
    return f"{value:.4g}"


class _Axis:
    """Values to places on the paper.

    Args:
        low, high: the range of the values.
        begin, end: where the range is on the paper.
        log: a logarithmic axis.
        exact: begin at ``low`` and end at ``high``, rather than a little before and after.
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
