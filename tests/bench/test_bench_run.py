"""Test a whole run of ``fastkd bench`` on small sizes: which files it writes, and what they say."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.benchmark import ONE, bench, few_calls, read, without

from fastkd.bench import device as devices, options, results, table
from fastkd.bench.peers import ROUTES


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        few_calls(patch)
        assert bench(folder) == 0
    yield folder


NUMBER = (int, float)
ENTRY = {
    **{name: int for name in ("vocab", "tokens", "student_width", "teacher_width", "logits_bytes", "calls")},
    **{name: str for name in ("dtype", "device", "divergence", "op", "route", "allocator", "status")},
    **{name: NUMBER for name in ("kd_ratio", "value_error", "ms")},
    **{name: bool for name in ("backward", "ours")},
    **{name: list for name in ("floor_ms", "allowed_errors")},
    "quantiles_ms": dict,
    "input_sets": int,
}


def test_the_file_has_every_field(whole: Path) -> None:
    run = read(whole)
    assert run["format"] == results.FORMAT
    assert run["device"] == devices.of("cpu").name()
    assert run["versions"]["torch"] == torch.__version__
    (command,) = run["commands"]
    assert command.startswith("fastkd bench --vocab 40 64")
    assert run["peers"] == {"eager": ROUTES["eager"].about}
    assert run["cases_left"] == 0
    assert run["entries"]
    for entry in run["entries"]:
        assert entry["status"] == "ok"
        for name, kind in ENTRY.items():
            assert isinstance(entry[name], kind), (name, entry[name])
        quantiles = list(entry["quantiles_ms"].values())
        assert quantiles == sorted(quantiles)
        assert 0 < quantiles[0] <= entry["ms"] <= quantiles[-1]
        assert (entry["gradient_error"] is None) == (not entry["backward"])
        if entry["op"] == "kd_loss":
            moved = (3 if entry["backward"] else 2) * entry["logits_bytes"]
            assert entry["gb_per_s"] == pytest.approx(moved / entry["ms"] / 1e6)
            times = [moved / rate / 1e6 for rate in entry["copy_gb_per_s"]]
            assert entry["floor_ms"] == pytest.approx(times)


def test_every_case_and_route_is_there(whole: Path) -> None:
    entries = read(whole)["entries"]
    found = {(e["op"], e["divergence"], e["kd_ratio"], e["backward"]) for e in entries}
    assert {("kd_loss", "forward_kl", 0.5, True), ("kd_loss", "forward_kl", 0.5, False)} <= found
    assert {(op, name, 1.0, True) for op in options.OPS for name in ("jsd", "tvd")} <= found
    shapes = {(e["dtype"], e["vocab"]) for e in entries if e["op"] == "kd_loss" and e["backward"]}
    assert shapes == {(dtype, vocab) for dtype in ("bfloat16", "float32") for vocab in (40, 64)}
    for case in {table.case_of(e) for e in entries}:
        assert {e["route"] for e in entries if table.case_of(e) == case} == {"fastkd native", "eager"}


def test_the_table_has_a_row_for_each_case(whole: Path) -> None:
    text = (whole / "table.txt").read_text()
    assert "kd_loss, forward + backward: 0.5 forward_kl (T = 2) + 0.5 cross-entropy" in text
    assert "kd_loss, forward + backward: jsd (T = 2) alone" in text
    assert "kd_loss, forward only" in text
    head = next(line for line in text.splitlines() if line.startswith("case"))
    assert head.split("  ")[0] == "case"
    for column in ("backend", "ms", "GB/s", "of floor", "vs eager", "peak extra", "grad err"):
        assert column in head
    assert sum(line.startswith("float32-V64-N6 ") for line in text.splitlines()) >= 4


def test_the_pictures_show_something(whole: Path) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    for name in ("roofline", "peers", "memory"):
        path = whole / f"{name}.png"
        if name == "roofline" and not path.exists():  # a busy machine gives no times that could be plotted
            entries = [e for e in read(whole)["entries"]]
            assert not any(table.quiet(e) for e in entries)
            continue
        picture = imread(path)[..., :3]
        assert picture.shape[0] > 300 and picture.shape[1] > 400
        painted = (abs(picture - picture[0, 0]) > 0.1).any(-1)
        assert 0.005 < painted.mean() < 0.6


def test_pictures_show_the_measured_cases(whole: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from fastkd.bench import plot

    run = read(whole)
    for entry in run["entries"]:
        entry["floor_ms"] = [1.0, 1.0]
        entry["ms"] = 2.0 if entry["ours"] else 8.0
    colours = plot._colours(run)
    roofline, times = plot.roofline(run, colours), plot.peers(run, colours)
    for figure, values in ((roofline, {0.5, 0.125}), (times, {2.0, 8.0})):
        drawn = {float(y) for axes in figure.axes for line in axes.lines for y in line.get_ydata()}
        assert values <= drawn
    assert "bfloat16, N = 6" in roofline.axes[0].get_title(loc="left")
    titles = [axes.get_title(loc="left") for axes in times.axes if axes.get_visible()]
    assert len(set(titles)) == len(titles)  # each panel says which case it shows
    widths = [bar.get_width() for axes in plot.memory(run, colours).axes for bar in axes.patches]
    assert widths == pytest.approx([5 * 64 * 6 * b / 2**20 for b in (4, 4)] * 2)


def test_pictures_can_be_drawn_later(whole: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "results.json").write_text((whole / "results.json").read_text())
    command = [sys.executable, "-m", "fastkd.bench.plot", str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"wrote {tmp_path / 'peers.png'}" in ran.stdout
    assert (tmp_path / "peers.png").stat().st_size > 10_000


def test_without_matplotlib_all_else_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without(monkeypatch, "matplotlib")
    assert bench(tmp_path, *ONE) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["results.json", "table.txt"]
    assert "pip install 'fastkd[bench]'" in capsys.readouterr().err
