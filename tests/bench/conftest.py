"""The benchmark's tests make few calls and draw no pictures."""

from __future__ import annotations

import importlib.util

import pytest
from support.benchmark import few_calls


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    few_calls(monkeypatch)
    if importlib.util.find_spec("matplotlib") is not None:
        monkeypatch.setattr("fastkd.bench.plot.draw_all", lambda run, folder: [])
