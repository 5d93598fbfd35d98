"""Test that ``fastkd bench`` states no speed for a wrong result, and goes on where something fails."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.benchmark import ONE, bench, gradient_scaled, read
from torch import Tensor

from fastkd.bench import device as devices, memory, options, peers, routes
from fastkd.bench.cases import Case, Problem
from fastkd.bench.peers import ROUTES


@pytest.mark.parametrize(
    "wrong",
    [
        lambda loss: loss * 1.01,
        lambda loss: gradient_scaled(loss, 1.01),
        lambda loss: loss * float("nan"),
    ],
    ids=["value", "gradient", "nan"],
)
def test_no_speed_for_a_wrong_result(
    wrong: Callable[[Tensor], Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    right = routes.fastkd_loss
    monkeypatch.setattr(routes, "fastkd_loss", lambda problem, backend=None: wrong(right(problem, backend)))
    assert bench(tmp_path, *ONE, "--vocab", "64") == 1
    said = capsys.readouterr()
    (entry,) = [e for e in read(tmp_path)["entries"] if e["ours"] and e["backward"]]
    assert entry["status"] == "wrong"
    assert "ms" not in entry
    assert "NaN" not in (tmp_path / "results.json").read_text()  # not JSON outside Python
    (row,) = [
        line for line in said.out.splitlines() if line.startswith("float32-V64-N6") and "off by" in line
    ][:1]
    assert "WRONG, no speed is stated" in row
    assert "fastkd bench: fastkd native" in said.err


def test_a_failing_call_of_ours_is_an_error_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An exception in fastkd's own call ends the benchmark with exit status 1."""

    def fails(problem: Problem, backend: str | None = None) -> Tensor:
        raise RuntimeError("no kernel")

    monkeypatch.setattr(routes, "fastkd_loss", fails)
    assert bench(tmp_path, *ONE) == 1
    assert "RuntimeError: no kernel" in capsys.readouterr().err


def test_a_wrong_peer_is_marked_and_the_others_continue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    replaced = dataclasses.replace(ROUTES["eager"], loss=lambda problem: 4 * peers.eager(problem))
    monkeypatch.setattr(options, "PEERS", [replaced])
    assert bench(tmp_path, *ONE) == 0
    assert "wrong (3e+00)" in capsys.readouterr().out
    by_route = {e["route"]: e for e in read(tmp_path)["entries"]}
    assert "ms" in by_route["fastkd native"]
    assert "ms" not in by_route["eager"]


def test_a_peer_that_runs_out_of_memory_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def out_of_memory(problem: Problem) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 16 GiB.")

    monkeypatch.setattr(options, "PEERS", [dataclasses.replace(ROUTES["eager"], loss=out_of_memory)])
    assert bench(tmp_path, *ONE) == 0
    assert "no memory" in capsys.readouterr().out


def test_a_case_that_does_not_fit_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(devices.Cpu, "free_bytes", lambda self: 10_000)
    assert bench(tmp_path, *ONE, "--vocab", "64", "--tokens", "2", "64") == 0
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if line.startswith("float32-V64-N64") and "skipped" in line]
    assert "GiB of memory" in line
    assert any("float32-V64-N2 " in line and "skipped" not in line for line in out.splitlines())


def test_time_is_reported_where_memory_cannot_be_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """If the peak of memory cannot be measured, the entry still has its time."""

    def elsewhere(route: str, case: Case) -> int:
        raise RuntimeError("the peak of memory on a CPU needs Linux")

    monkeypatch.setattr(memory, "peak_extra_in_child", elsewhere)
    assert bench(tmp_path, *ONE) == 0
    assert "no peak of memory: the peak of memory on a CPU needs Linux" in capsys.readouterr().out
    assert all("ms" in e and "peak_extra_bytes" not in e for e in read(tmp_path)["entries"])
