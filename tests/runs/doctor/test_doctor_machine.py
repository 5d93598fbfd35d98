"""Test the doctor's findings about the machine: backends, GPU, head, disk and memory."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.doctor import SETTINGS, look
from support.tiny import llama

from fastkd.backends.native import NativeBackend
from fastkd.runs.disk_space import free_disk
from fastkd.runs.doctor.findings import Case
from fastkd.runs.doctor.machine import idle_gpu, memory
from fastkd.trainer import DistillationConfig


def test_a_backend_that_falls_back(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NativeBackend, "missing", lambda *_: "it was not built: install a compiler")
    finding = look()["reference_backend"]
    assert finding.severity == "warning" and "install a compiler" in finding.found


def test_a_driver_without_a_gpu(place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    case = Case(DistillationConfig(**SETTINGS), fast=True)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("fastkd.runs.doctor.machine.NVIDIA_DRIVER", tmp_path)
    assert [finding.name for finding in idle_gpu(case)] == ["gpu_unseen"]
    monkeypatch.setattr("fastkd.runs.doctor.machine.NVIDIA_DRIVER", tmp_path / "none")
    assert not list(idle_gpu(case))


def test_a_head_that_is_not_linear(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reason = "the output head of Some is Other, not nn.Linear"
    monkeypatch.setattr("fastkd.runs.doctor.machine.declared_head", lambda _: reason)
    assert look()["fused_head"].severity == "note" and reason in look()["fused_head"].found
    assert look(fused_head="true")["fused_head"].severity == "error"
    assert "fused_head" not in look(fused_head="false")


def test_room_on_the_disk(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = sum(p.numel() for p in llama().parameters())
    run = {"max_steps": 100, "save_steps": 10}
    needed = 4 * parameters + 10 * 12 * parameters
    for free, severity in ((needed - 1, "error"), (needed + 1, "warning"), (2 * needed, None)):
        monkeypatch.setattr("fastkd.runs.disk_space.free_disk", lambda _, free=free: free)
        found = look(**run).get("disk")
        assert (found and found.severity) == severity
    monkeypatch.setattr("fastkd.runs.disk_space.free_disk", lambda _: needed - 1)
    assert "disk" not in look(**run, save_total_limit=2)
    assert "disk" not in look(**run, save_strategy="no")


def test_a_step_that_needs_more_memory_than_there_is(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(DistillationConfig(**SETTINGS), fast=False)
    assert not list(memory(case))
    monkeypatch.setattr("fastkd.runs.doctor.machine.free_bytes", lambda _: 100_000)
    assert [finding.severity for finding in memory(case)] == ["warning"]  # an estimate
    assert not list(memory(Case(case.args, fast=True)))


def test_free_disk_looks_where_the_folder_would_be(tmp_path: Path) -> None:
    assert free_disk(tmp_path / "a" / "b") == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.05)
