"""Every test starts with the same seed, and fresh ``torch.empty`` memory holds NaN."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from targets import TARGETS, Target


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
