"""Every test starts with the same seed, and fresh ``torch.empty`` memory holds NaN."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from interpreter import patch_once
from targets import TARGETS, Target

from fastkd.backends.registry import REGISTRY


def mark_repetitions(items: list[pytest.Item]) -> None:
    """Mark as slow most cases of the tests that carry the mark ``repeats``, separately for each target.

    ``repeats(n)`` keeps n evenly spread cases per target among the quick tests. ``repeats(interpreted=n)``
    does so only where Triton's kernels are interpreted. On a GPU all cases run.
    """
    groups: dict[object, list[pytest.Item]] = {}
    for item in items:
        mark = item.get_closest_marker("repeats")
        if mark is None or item.get_closest_marker("gpu"):
            continue
        interpreted = item.get_closest_marker("triton_interpret") is not None
        if mark.args or interpreted:
            target = item.callspec.params.get("target") if isinstance(item, pytest.Function) else None
            groups.setdefault((item.path, getattr(item, "originalname", ""), target), []).append(item)
    for cases in groups.values():
        mark = cases[0].get_closest_marker("repeats")
        assert mark is not None
        quick = mark.args[0] if mark.args else mark.kwargs["interpreted"]
        kept = {place * len(cases) // quick for place in range(quick)}
        for place, item in enumerate(cases):
            if place not in kept:
                item.add_marker(pytest.mark.slow)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the cases that this process cannot run: GPU cases without a GPU, and interpreted Triton cases
    without the interpreter.

    Both are counted as deselected, not as skipped, because each has a run of its own (``make gpu``, and the
    second half of ``make test``). ``--collect-only -m gpu`` lists the GPU cases on any machine.
    """
    mark_repetitions(items)
    unrunnable = set() if torch.cuda.is_available() or config.option.collectonly else {"gpu"}
    if REGISTRY["triton"].missing(torch.device("cpu")) is not None:
        unrunnable.add("triton_interpret")
    else:
        patch_once()
    kept, dropped = [], []
    for item in items:
        if item.get_closest_marker("huge") and config.pluginmanager.hasplugin("xdist"):
            item.add_marker(pytest.mark.xdist_group("huge"))
        (dropped if any(item.get_closest_marker(mark) for mark in unrunnable) else kept).append(item)
    config.hook.pytest_deselected(items=dropped)
    items[:] = kept


def pytest_runtest_logfinish(nodeid: str) -> None:
    """Replace or end this process if a kernel broke the GPU's context: every later test would fail too."""
    if not torch.cuda.is_initialized():
        return
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        if "PYTEST_XDIST_WORKER" in os.environ:
            os._exit(3)  # pytest-xdist starts another process
        pytest.exit(f"the GPU can no longer be used after {nodeid}: {error}", returncode=3)


@pytest.fixture(autouse=True)
def seeded_and_poisoned() -> Iterator[None]:
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    """Run the test with each backend on each device, and with each instruction set of the CPU."""
    with request.param.active():
        yield request.param
