"""Test a run of ``fastkd bench`` that time or the user ends, and the one that resumes it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from support.benchmark import ONE, bench, read
from torch import Tensor

from fastkd.bench import options, plan, render, run as running, table
from fastkd.bench.cases import Problem
from fastkd.bench.peers import ROUTES


class Clock:
    """A clock that advances by ten seconds each time it is read."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        self.now += 10
        return self.now


def test_the_budget_ends_a_run_and_the_next_run_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "--op",
        "kd_loss",
        "--vocab",
        "40",
        "--divergence",
        "forward_kl",
        "jsd",
        "--dtype",
        "float32",
    ]
    selection = options.select(
        "cpu", ["kd_loss"], [40], [6], dtypes=["float32"], divergences=["forward_kl", "jsd"], peers=["eager"]
    )
    assert len(plan.cases(selection)) == 3
    with monkeypatch.context() as patch:
        patch.setattr(running, "time", Clock())
        run = running.run(selection, tmp_path, budget=25)
    assert run["cases_left"] == 1
    assert len({table.case_of(e) for e in run["entries"]}) == 2
    assert "1 cases were left" in render.text(run)
    before = read(tmp_path)["entries"]
    assert bench(tmp_path, *arguments) == 0
    after = read(tmp_path)
    assert after["entries"][: len(before)] == before
    assert len(after["entries"]) == len(before) + 2
    assert after["cases_left"] == 0
    assert len(after["commands"]) == 2
    assert set(after["peers"]) == {"eager"}
    assert "4 measurements were there already" in capsys.readouterr().err


def test_an_interrupted_run_keeps_its_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []

    def interrupts(problem: Problem) -> Tensor:
        calls.append(problem)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(options, "PEERS", [dataclasses.replace(ROUTES["eager"], loss=interrupts)])
        assert bench(tmp_path, *ONE) == 130
    assert calls
    assert "the same command resumes the run" in capsys.readouterr().err
    assert read(tmp_path)["cases_left"] == 2
    (kept,) = read(tmp_path)["entries"]
    assert kept["route"] == "fastkd native" and kept["status"] == "ok"
    assert bench(tmp_path, *ONE) == 0
    entries = read(tmp_path)["entries"]
    assert entries[0] == kept
    assert [e["route"] for e in entries] == ["fastkd native", "eager"] * 2


def test_failed_cases_are_retried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(problem: Problem) -> Tensor:
        raise RuntimeError("today not")

    with monkeypatch.context() as patch:
        patch.setattr(options, "PEERS", [dataclasses.replace(ROUTES["eager"], loss=fails)])
        bench(tmp_path, *ONE)
    assert {e["status"] for e in read(tmp_path)["entries"]} == {"ok", "failed"}
    bench(tmp_path, *ONE)
    assert {e["status"] for e in read(tmp_path)["entries"]} == {"ok"}


def test_fresh_measures_again(tmp_path: Path) -> None:
    bench(tmp_path, *ONE)
    first = read(tmp_path)["entries"]
    bench(tmp_path, *ONE)
    assert read(tmp_path)["entries"] == first
    bench(tmp_path, *ONE, "--fresh")
    again = read(tmp_path)["entries"]
    assert len(again) == len(first)
    assert [e["quantiles_ms"] for e in again] != [e["quantiles_ms"] for e in first]


@pytest.mark.parametrize("what", ["device", "versions", "format", "text"])
def test_results_of_another_machine_are_not_mixed_in(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench(tmp_path, *ONE)
    run = read(tmp_path)
    run[what] = {"device": "another CPU", "versions": {"torch": "1.0"}, "format": 1}.get(what)
    (tmp_path / "results.json").write_text("half a fi" if what == "text" else json.dumps(run))
    before = (tmp_path / "results.json").read_text()
    assert bench(tmp_path, *ONE) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "--out" in said and "--fresh" in said
    assert (tmp_path / "results.json").read_text() == before
    assert bench(tmp_path, *ONE, "--fresh") == 0
