"""Draws the pictures of a run: one case at a glance (time and memory as bars), speed against the floor and
time over the vocabulary size, and memory as bars.

``python -m fastkd.bench.plot FOLDER`` draws the pictures of a run that was measured without matplotlib.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from fastkd.bench import summary, table
from fastkd.bench.cases import Case
from fastkd.bench.measure import Entry
from fastkd.bench.results import NAME, Run

INK, FAINT = "#2b2d33", "#d9dbe0"
OURS = {"fastkd native": "#0f7b6c", "fastkd triton": "#3fae9b", "fastkd reference": "#9bd0c6"}
THEIRS = (
    "#d9822b",
    "#8a5fb0",
    "#4f7fc0",
    "#c0504f",
    "#8a8f99",
    "#b59a2d",
    "#5d6b7a",
    "#c07fa8",
    "#6f9a4f",
    "#a5673f",
    "#3d8f99",
    "#b8b0c8",
)
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}
PANELS = 3  # most panels in a row, so that a picture stays readable

Panel = tuple[str, list[tuple[Case, Entry]]]


def draw_all(run: Run, folder: Path) -> list[Path]:
    """Draw ``summary``, ``roofline``, ``peers`` and ``memory``, each as PNG and if there is data for it."""
    colours = _colours(run)
    (folder / "summary.png").unlink(missing_ok=True)
    written = summary.write(run, folder / "summary.png")
    pictures = {
        "roofline": roofline(run, colours),
        "peers": peers(run, colours),
        "memory": memory(run, colours),
    }
    for name, figure in pictures.items():
        path = folder / f"{name}.png"
        path.unlink(missing_ok=True)
        if figure is not None:
            _save(figure, path)
            written.append(path)
    return written


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=150, bbox_inches="tight", facecolor="white")
    plt.close(figure)


def roofline(run: Run, colours: dict[str, str]) -> Any:
    """Fraction of the floor's speed over the vocabulary size, one line for each route; 1 is the floor."""

    def share(entry: Entry) -> float | None:
        times = table.times_floor(entry)
        return None if times is None else 1 / times

    def finish(axes: Any, case: Case) -> None:
        axes.axhline(1, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        axes.set_ylim(0, max(1.1, axes.get_ylim()[1]))
        axes.set_ylabel("share of the products' speed" if case.linear else "share of the copy's speed")

    return _lines(
        run, colours, share, finish, "How near the floor", _note(run, "the dashed line is the floor")
    )


def peers(run: Run, colours: dict[str, str]) -> Any:
    """Milliseconds over the vocabulary size, one line for each route."""

    def finish(axes: Any, case: Case) -> None:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda ms, _: f"{ms:g}"))
        axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        axes.yaxis.set_minor_formatter(FuncFormatter(lambda ms, _: f"{ms:g}"))
        axes.tick_params(axis="y", which="minor", labelsize=8)
        axes.set_ylabel("milliseconds")

    return _lines(run, colours, lambda e: e["ms"], finish, "Time of one call", _note(run, "lower is better"))


def memory(run: Run, colours: dict[str, str]) -> Any:
    """Peak extra memory of every route: for each table, the largest case with the most routes."""
    panels = []
    for entries in table.groups(run).values():
        measured = [e for e in entries if "peak_extra_bytes" in e]
        if len({e["route"] for e in measured}) > 1:
            largest = max(measured, key=lambda e: (len(_same_case(measured, e)), e["logits_bytes"]))
            panels.append(_same_case(measured, largest))
    if not panels:
        return None
    with plt.rc_context(STYLE):
        figure, grid = _grid(len(panels), 1.1 + 0.33 * max(map(len, panels)))
        for axes, entries in zip(grid, panels, strict=False):
            _memory_bars(axes, entries, colours)
            case = table.case_of(entries[0])
            title = f"{_title(entries[0])}\n{_shape(case)}, V = {case.vocab:,}"
            axes.set_title(title, loc="left", fontsize=10)
        figure.suptitle("Peak extra memory, the gradient included and the inputs not", x=0.01, ha="left")
        _foot(figure, _note(run, "dashed: one tensor of logits"))
    return figure


def _memory_bars(axes: Any, entries: list[Entry], colours: dict[str, str]) -> None:
    large = max(e["peak_extra_bytes"] for e in entries) >= 2**30
    unit, unit_name = (2**30, "GiB") if large else (2**20, "MiB")
    peaks = [e["peak_extra_bytes"] / unit for e in entries]
    one = entries[0]["logits_bytes"] / unit
    _bars(axes, entries, peaks, [f"{peak:.3g} {unit_name}" for peak in peaks], colours)
    axes.axvline(one, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_xlim(0, 1.3 * max(*peaks, one))
    axes.set_xlabel(unit_name)


def _bars(
    axes: Any, entries: list[Entry], values: list[float], labels: list[str], colours: dict[str, str]
) -> None:
    """One horizontal bar for each entry, with its label behind it."""
    names = [e["route"] for e in entries]
    axes.barh(range(len(names)), values, color=[colours[name] for name in names], height=0.62)
    for row, label in enumerate(labels):
        axes.text(values[row], row, f" {label}", va="center", fontsize=9)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.3 * max(values))
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _same_case(entries: list[Entry], like: Entry) -> list[Entry]:
    return [e for e in entries if table.case_of(e) == table.case_of(like)]


def _lines(run: Run, colours: dict[str, str], value: Any, finish: Any, title: str, note: str) -> Any:
    panels = _panels(run, value)
    if not panels:
        return None
    with plt.rc_context(STYLE):
        figure, grid = _grid(len(panels), 3.2)
        drawn: dict[str, Any] = {}
        for axes, (heading, points) in zip(grid, panels, strict=False):
            for route in dict.fromkeys(entry["route"] for _, entry in points):
                own = sorted((case.vocab, value(e)) for case, e in points if e["route"] == route)
                ours = route in OURS
                (drawn[route],) = axes.plot(
                    *zip(*own, strict=True),
                    color=colours[route],
                    linewidth=2.6 if ours else 1.6,
                    marker="o",
                    markersize=6 if ours else 4,
                    zorder=3 if ours else 2,
                )
            _vocabulary(axes, sorted({case.vocab for case, _ in points}))
            axes.set_title(heading, loc="left", fontsize=10)
            axes.grid(axis="y", color=FAINT, linewidth=0.6)
            axes.set_axisbelow(True)
            finish(axes, points[0][0])
        order = [name for name in colours if name in drawn]
        figure.suptitle(title, x=0.01, ha="left")
        figure.legend(
            [drawn[name] for name in order],
            order,
            frameon=False,
            loc="upper left",
            bbox_to_anchor=(1.0, 0.95),
        )
        _foot(figure, note)
    return figure


def _panels(run: Run, value: Any) -> list[Panel]:
    """One panel for each table and dtype, at the number of tokens and widths with the most vocabulary sizes.

    Panels with one vocabulary size show no curve; they are left out if any panel has a curve.
    """
    panels = []
    for entries in table.groups(run).values():
        found: dict[tuple[Any, ...], list[tuple[Case, Entry]]] = {}
        for entry in entries:
            if entry["status"] == "ok" and value(entry) is not None:
                case = table.case_of(entry)
                found.setdefault((case.dtype, case.tokens, case.student_width), []).append((case, entry))
        for dtype in dict.fromkeys(key[0] for key in found):
            curves = [points for key, points in found.items() if key[0] == dtype]
            curve = max(curves, key=lambda points: len({case.vocab for case, _ in points}))
            panels.append((f"{_title(curve[0][1])}\n{_shape(curve[0][0])}", curve))
    curved = [panel for panel in panels if len({case.vocab for case, _ in panel[1]}) > 1]
    return curved or panels


def _title(entry: Entry) -> str:
    """The operator and its quantity, and the mode of the allocator if it is not the default."""
    case = table.case_of(entry)
    kept = ", memory kept" if entry["allocator"] == "kept" else ""
    forward = "" if case.backward else ", forward only"
    return f"{case.op}{forward}{kept}: {case.quantity.replace(' (T = 2)', '')}"


def _shape(case: Case) -> str:
    widths = f", widths {case.student_width:,}/{case.teacher_width:,}" if case.linear else ""
    return f"{case.dtype}, N = {case.tokens:,}{widths}"


def _vocabulary(axes: Any, ticks: Sequence[int]) -> None:
    axes.set_xscale("log")
    # The labels of neighbouring ticks would overlap.
    shown = [v for i, v in enumerate(ticks) if i == 0 or v >= 1.3 * ticks[i - 1]]
    axes.xaxis.set_major_locator(FixedLocator(shown))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))
    axes.set_xlim(ticks[0] / 1.25, ticks[-1] * 1.25)
    axes.set_xlabel("vocabulary")


def _grid(count: int, height: float) -> tuple[Any, list[Any]]:
    columns = min(PANELS, count)
    rows = -(-count // columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(4.6 * columns, height * rows + 0.6), squeeze=False, layout="constrained"
    )
    flat = list(grid.flat)
    for unused in flat[count:]:
        unused.set_visible(False)
    return figure, flat


def _foot(figure: Any, note: str) -> None:
    figure.supxlabel(note, x=0.01, ha="left", fontsize=8.5, color="#8a8f99")


def _note(run: Run, first: str) -> str:
    return f"{first}; medians on {run['device']}, {run['date']}, torch {run['versions']['torch']}"


def _colours(run: Run) -> dict[str, str]:
    """A colour for each route, fastkd's first, for use in all pictures."""
    names = dict.fromkeys(e["route"] for e in run["entries"])
    theirs = [name for name in names if name not in OURS]
    found = {name: colour for name, colour in OURS.items() if name in names}
    return found | {name: THEIRS[i % len(THEIRS)] for i, name in enumerate(theirs)}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for written in draw_all(json.loads((folder / NAME).read_text()), folder):
        print(f"wrote {written}")
