"""Helpers of the benchmark's tests: a small run of ``fastkd bench``, its results, absent packages."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from fastkd.bench import device as devices, memory
from fastkd.cli import main

TINY = ["--vocab", "40", "64", "--tokens", "6", "--heads", "8/16", "--device", "cpu", "--budget", "0"]
ONE = ["--op", "kd_loss", "--vocab", "40", "--dtype", "float32", "--divergence", "forward_kl"]


def few_calls(patch: pytest.MonkeyPatch) -> None:
    """Start no processes to measure memory, and make few calls: times do not matter in these tests."""
    patch.setattr(memory, "peak_extra_in_child", lambda route, case: 5 * case.logits_bytes)
    patch.setattr(devices, "MOST_CALLS", 4)
    patch.setattr(devices, "MOST_SETS", 2)


def bench(folder: Path, *arguments: str) -> int:
    return main(["bench", *TINY, "--peer", "eager", "--out", str(folder), *arguments])


def read(folder: Path) -> dict[str, Any]:
    run: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return run


def without(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    """Hide packages from ``importlib.util.find_spec``, as if they were not installed."""
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name in packages else real(name, *rest)
    )


def gradient_scaled(loss: Tensor, factor: float) -> Tensor:
    """The same loss, with a gradient ``factor`` times as large."""
    return loss.detach() + factor * (loss - loss.detach())
