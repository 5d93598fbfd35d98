"""Draws what fastkd buys at a glance: time and memory beside the peers, from logits and hidden states."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from fastkd.bench import table
from fastkd.bench.cases import Case
from fastkd.bench.measure import Entry
from fastkd.bench.results import Run

NAMES = {
    "eager": "eager PyTorch",
    "liger chunked": "Liger",
    "liger fused KL": "Liger, KL",
    "liger": "Liger",
    "trl": "TRL",
    "trl chunked": "TRL",
    "orda": "orda-kernel",
}
FROM = {"kd_loss": "from the logits", "linear_kd_loss": "from the hidden states"}


class Colours(NamedTuple):
    """The colours of one picture, whose background is transparent."""

    text: str
    faint: str
    ours: str
    theirs: str


LIGHT = Colours("#1f2328", "#59636e", "#0f7b6c", "#b9c0c8")
DARK = Colours("#e6edf3", "#9198a1", "#35b8a2", "#565e68")
# An SVG names fonts rather than holding their outlines; a browser takes the first that it has.
FONTS = ["Segoe UI", "Helvetica Neue", "Helvetica", "Arial", "Liberation Sans", "DejaVu Sans"]
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": FONTS,
    "svg.fonttype": "none",
    "svg.hashsalt": "fastkd",
}
# In inches: the picture, the names at the left, a panel, the space between panels, a bar, the text above and
# below the bars, and the margin. A phone shows the picture at two thirds of this size, so it is narrow.
WIDTH, NAME, PANEL, GAP, BAR, HEAD, FOOT, MARGIN = 5.9, 1.12, 2.3, 0.1, 0.29, 0.82, 0.5, 0.05
# The share of a panel that its longest bar takes; the rest is for labels.
LONGEST = 0.52


class Row(NamedTuple):
    """One route: its time in milliseconds and its peak memory in bytes."""

    name: str
    ours: bool
    ms: float
    peak: int


class Scene(NamedTuple):
    """A case, with fastkd's fastest route and the peers that can be compared with it."""

    case: Case
    allocator: str
    rows: list[Row]


def scenes(run: Run) -> list[Scene]:
    """For each op, the case in which most peers can be compared; among those the largest, with memory kept.

    Peers are in the order of their times. Routes that were measured while the machine was busy, or whose
    memory is unknown, are left out.
    """
    peaks = table.peaks(run)
    best: dict[str, Scene] = {}
    for (allocator, op, _, calls), entries in table.groups(run).items():
        if "backward" not in calls:
            continue
        for routes in table.by_case(entries).values():
            rows = _comparable(list(routes.values()), peaks)
            found = Scene(table.case_of(next(iter(routes.values()))), allocator, rows)
            if len(rows) > 1 and (op not in best or _rank(found) > _rank(best[op])):
                best[op] = found
    return [best[op] for op in FROM if op in best]


def _rank(scene: Scene) -> tuple[int, int, bool]:
    return len(scene.rows), scene.case.logits_bytes, scene.allocator == "kept"


def _comparable(entries: Sequence[Entry], peaks: dict[tuple[Case, str], int]) -> list[Row]:
    def peak(entry: Entry) -> int:
        return peaks.get((table.case_of(entry), entry["route"]), 0)

    # A peak of 0 is too small to be seen, and has no ratio either.
    measured = [e for e in entries if e["status"] == "ok" and peak(e) > 0]
    ours = min((e for e in measured if e["ours"]), key=lambda e: e["ms"], default=None)
    if ours is None:
        return []
    peers = [e for e in measured if not e["ours"] and table.quiet(ours, e)]
    return [
        Row("fastkd" if e["ours"] else NAMES.get(e["route"], e["route"]), e["ours"], e["ms"], peak(e))
        for e in (ours, *sorted(peers, key=lambda e: e["ms"]))
    ]


def figure(run: Run, colours: Colours = LIGHT) -> Any:
    """The picture, or None if no case of a quiet machine has a peer to compare with."""
    found = scenes(run)
    if not found:
        return None
    height = FOOT + sum(HEAD + BAR * len(scene.rows) for scene in found)
    with plt.rc_context(STYLE):
        drawn = plt.figure(figsize=(WIDTH, height))
        top = height
        for scene in found:
            _draw(drawn, scene, top, height, colours)
            top -= HEAD + BAR * len(scene.rows)
        _text(drawn, MARGIN, FOOT - 0.14, height, _note(run, found), colours.faint, size=7.5, va="top")
    return drawn


def write(run: Run, path: Path) -> list[Path]:
    """Write the picture to ``path``; an SVG gets a second one for dark pages beside it, ``<name>-dark.svg``.

    No file is touched if there is nothing to compare.
    """
    wanted = [(path, LIGHT)]
    if path.suffix == ".svg":
        wanted.append((path.with_name(f"{path.stem}-dark.svg"), DARK))
    written = []
    for place, colours in wanted:
        drawn = figure(run, colours)
        if drawn is not None:
            svg = place.suffix == ".svg"
            with plt.rc_context(STYLE):
                drawn.savefig(
                    place,
                    dpi=150,
                    transparent=svg,
                    facecolor="none" if svg else "white",
                    metadata={"Date": None} if svg else None,
                )
            plt.close(drawn)
            written.append(place)
    return written


def labels(scene: Scene) -> list[str]:
    """The texts beside the bars of a scene: names, times, peaks, and how many times fastkd's they are."""
    first, *rest = scene.rows
    ratios = [ratio for row in rest for ratio in (row.ms / first.ms, row.peak / first.peak)]
    return [
        *(text for row in scene.rows for text in (row.name, _milliseconds(row.ms), table.size(row.peak))),
        *map(_times, ratios),
    ]


def _milliseconds(ms: float) -> str:
    return f"{ms:,.0f} ms" if ms >= 100 else f"{ms:.1f} ms"


def _times(ratio: float) -> str:
    return f"{ratio:.0f}×" if ratio >= 100 else f"{ratio:.1f}×"


def _draw(drawn: Any, scene: Scene, top: float, height: float, colours: Colours) -> None:
    """One scene from ``top`` (inches from the lower edge) downwards."""
    case, rows = scene.case, scene.rows
    title = f"{case.op}, {FROM[case.op]}"
    _text(drawn, MARGIN, top - 0.2, height, title, colours.text, size=12, weight="bold")
    _text(drawn, MARGIN, top - 0.38, height, _about(case), colours.faint, size=8)
    columns = (
        ("time", [row.ms for row in rows], _milliseconds),
        ("peak memory", [float(row.peak) for row in rows], lambda peak: table.size(int(peak))),
    )
    low, bars = top - HEAD + 0.12 - BAR * len(rows), BAR * len(rows)
    for column, (label, values, written) in enumerate(columns):
        left = NAME + column * (PANEL + GAP)
        _text(drawn, left, top - 0.64, height, label, colours.text, size=9)
        axes = drawn.add_axes((left / WIDTH, low / height, PANEL / WIDTH, bars / height))
        axes.axis("off")
        axes.set_xlim(0, max(values) / LONGEST)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        for i, row in enumerate(rows):
            axes.barh(i, values[i], color=colours.ours if row.ours else colours.theirs, height=0.66)
            _label(axes, i, values[i], written(values[i]), values[i] / values[0], row.ours, colours)
            if column == 0:
                _name(axes, i, row, colours)


def _name(axes: Any, i: int, row: Row, colours: Colours) -> None:
    axes.annotate(
        row.name, (0, i), (-6, 0), textcoords="offset points", ha="right", va="center", annotation_clip=False,
        color=colours.ours if row.ours else colours.text, weight="bold" if row.ours else "normal", size=10,
    )  # fmt: skip


def _label(axes: Any, i: int, value: float, text: str, ratio: float, ours: bool, colours: Colours) -> None:
    """The number behind a bar, and how many times as much as fastkd's it is."""
    style: dict[str, Any] = {"textcoords": "offset points", "va": "center", "annotation_clip": False}
    axes.annotate(
        text if ours else _times(ratio), (value, i), (5, 0), weight="bold", size=10,
        color=colours.ours if ours else colours.text, **style,
    )  # fmt: skip
    if not ours:
        axes.annotate(text, (value, i), (39, 0), size=8, color=colours.faint, **style)


def _text(
    drawn: Any, x: float, y: float, height: float, text: str, color: str, size: float, **options: Any
) -> None:
    drawn.text(x / WIDTH, y / height, text, color=color, size=size, **options)


def _about(case: Case) -> str:
    loss = case.divergence.replace("_kl", " KL") + (" + cross-entropy" if case.kd_ratio < 1 else "")
    widths = f", widths {case.student_width:,}/{case.teacher_width:,}" if case.linear else ""
    return f"{loss}, {case.dtype}, {case.tokens:,} tokens, V = {case.vocab:,}{widths}"


def _note(run: Run, found: Sequence[Scene]) -> str:
    kept = any(scene.allocator == "kept" for scene in found)
    note = (
        f"Medians of one forward and backward on {run['device']}, {run['date']}, "
        f"torch {run['versions']['torch']}. Memory: the peak above the inputs, the gradient included. "
        f"All compute the same loss{', with freed memory kept mapped' if kept else ''}."
    )
    return "\n".join(textwrap.wrap(note, 104))
