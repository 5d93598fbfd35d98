"""The kernel for the hub, built once."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
from support import hub


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository as ``make hub-kernel`` writes it."""
    out = tmp_path_factory.mktemp("hub") / "kernel"
    hub.build.write(hub.build.kernel(), out)
    return out


@pytest.fixture(scope="session")
def kernel(built: Path) -> ModuleType:
    """The build variant for a CPU build of torch, imported."""
    return hub.load(built / "build/torch-cpu")
