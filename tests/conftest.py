"""Every test starts with the same seed, and fresh ``torch.empty`` memory holds NaN."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from interpreter import patch_once
from targets import TARGETS, Target

from fastkd.backends.registry import REGISTRY


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what this process cannot run: GPU cases without a GPU, interpreted ones not interpreted.

    Both are counted as deselected, not as skipped: each has a run of its own (``make gpu``, and the second
    half of ``make test``).
    """
    unrunnable = set() if torch.cuda.is_available() else {"gpu"}
    if REGISTRY["triton"].missing(torch.device("cpu")) is not None:
        unrunnable.add("triton_interpret")
    else:
        patch_once()
    kept, dropped = [], []
    for item in items:
        (dropped if any(item.get_closest_marker(mark) for mark in unrunnable) else kept).append(item)
    config.hook.pytest_deselected(items=dropped)
    items[:] = kept


@pytest.fixture(autouse=True)
def seeded_and_poisoned() -> Iterator[None]:
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    """Each backend on each device, and each instruction set of the CPU."""
    with request.param.active():
        yield request.param
