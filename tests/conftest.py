"""Every test starts with the same seed, and fresh ``torch.empty`` memory holds NaN. No test asks the hub."""

from __future__ import annotations

import os
from collections.abc import Iterator

# The hub's client reads this when it is imported. Without it, each mistyped name of a model is looked up, and
# without a connection that is repeated for minutes.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from support.interpreter import patch_once
from support.repeats import mark_repetitions
from support.targets import TARGETS, Target

from fastkd.backends.registry import REGISTRY


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
