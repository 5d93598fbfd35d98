"""Test the picture at a glance: which cases it shows, and that it shows them truly."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")

from fastkd.bench import measure, summary
from fastkd.bench.cases import Case
from fastkd.bench.peers import ROUTES

LOGITS = Case(64, 6, "float32")
ALONE = Case(64, 6, "float32", kd_ratio=1.0)
HIDDEN = Case(64, 6, "float32", student_width=8, teacher_width=16)


def entry(case: Case, route: str, ms: float, peak: int, **fields: Any) -> measure.Entry:
    blank = measure.blank(case, ROUTES[route])
    return {**blank, "ms": ms, "peak_extra_bytes": peak, "floor_ms": [1.0, 1.0], **fields}


def run_of(*entries: measure.Entry) -> dict[str, Any]:
    versions = {"torch": "2.13.0"}
    return {"entries": list(entries), "device": "a CPU", "date": "2026-01-01", "versions": versions}


@pytest.fixture
def run() -> dict[str, Any]:
    return run_of(
        entry(LOGITS, "fastkd native", 2.0, 2**20),
        entry(LOGITS, "eager", 8.0, 7 * 2**20),
        entry(ALONE, "fastkd native", 3.0, 2**20),
        entry(ALONE, "eager", 30.0, 5 * 2**20),
        entry(ALONE, "trl", 12.0, 7 * 2**20),
        entry(HIDDEN, "fastkd native", 5.0, 2**20),
        entry(HIDDEN, "torch.compile", 10.0, 3 * 2**20),
    )


def test_each_op_has_the_case_with_most_peers(run: dict[str, Any]) -> None:
    first, second = summary.scenes(run)
    assert (first.case, second.case) == (ALONE, HIDDEN)
    assert [(row.name, row.ms) for row in first.rows] == [
        ("fastkd", 3.0),
        ("TRL", 12.0),
        ("eager PyTorch", 30.0),
    ]


def test_memory_kept_goes_first() -> None:
    """Where both allocator modes have the same peers, the times are those with memory kept."""
    both = [
        entry(LOGITS, route, ms * slower, 2**20, allocator=mode)
        for mode, slower in (("kept", 1.0), ("default", 2.0))
        for route, ms in (("fastkd native", 2.0), ("eager", 8.0))
    ]
    for found in (both, both[::-1]):
        (scene,) = summary.scenes(run_of(*found))
        assert (scene.allocator, scene.rows[0].ms) == ("kept", 2.0)


def test_what_cannot_be_compared_is_left_out(run: dict[str, Any], tmp_path: Path) -> None:
    """Busy, wrong and failed routes, routes without a peak, and forward passes have no bar."""
    by_route = {(e["route"], e["kd_ratio"]): e for e in run["entries"] if e["op"] == "kd_loss"}
    by_route["trl", 1.0]["status"] = "wrong"
    by_route["eager", 1.0]["floor_ms"] = [1.0, 2.0]
    del by_route["eager", 0.5]["peak_extra_bytes"]
    (only,) = summary.scenes(run)
    assert only.case == HIDDEN
    assert summary.scenes(run_of(*(e for e in run["entries"] if e["op"] == "kd_loss"))) == []
    forward = Case(64, 6, "float32", backward=False)
    alone = run_of(entry(forward, "fastkd native", 1.0, 1), entry(forward, "eager", 2.0, 1))
    assert summary.write(alone, tmp_path / "picture.svg") == [] and list(tmp_path.iterdir()) == []


def test_the_picture_has_every_number(run: dict[str, Any], tmp_path: Path) -> None:
    light, dark = summary.write(run, tmp_path / "picture.svg")
    assert (light.name, dark.name) == ("picture.svg", "picture-dark.svg")
    texts = re.findall(r">([^<>]+)</text>", light.read_text("utf-8"))
    assert {"fastkd", "TRL", "4.0×", "10.0×", "3.0 ms", "5.0 MiB", "7.0×", "2.0×"} <= set(texts)
    assert re.findall(r">([^<>]+)</text>", dark.read_text("utf-8")) == texts
    assert light.read_text("utf-8") != dark.read_text("utf-8")
    figure = summary.figure(run)
    widths = [[bar.get_width() for bar in axes.patches] for axes in figure.axes]
    assert widths == [[3.0, 12.0, 30.0], [2**20, 7 * 2**20, 5 * 2**20], [5.0, 10.0], [2**20, 3 * 2**20]]


def test_drawing_again_gives_the_same_file(run: dict[str, Any], tmp_path: Path) -> None:
    first = summary.write(run, tmp_path / "picture.svg")[0].read_bytes()
    assert summary.write(run, tmp_path / "picture.svg")[0].read_bytes() == first
    (png,) = summary.write(run, tmp_path / "picture.png")
    assert png.stat().st_size > 5_000
