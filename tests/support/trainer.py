"""Fixtures of the trainer's tests: one CPU thread, and configurations for quick runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

# Without the `train` extra the trainer cannot be imported, so its tests are not collected.
missing = [name for name in ("transformers", "accelerate", "datasets", "yaml") if find_spec(name) is None]
collect_ignore_glob = ["test_*.py"] if missing else []


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def configuration(tmp_path: Path) -> Callable[..., Any]:
    """A ``DistillationConfig`` for a few quick steps."""
    from fastkd.trainer import DistillationConfig

    def make(**fields: Any) -> Any:
        defaults: dict[str, Any] = {
            "output_dir": str(tmp_path / "out"),
            "max_steps": 4,
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 4,
            "learning_rate": 1e-2,
            "save_strategy": "no",
            "use_cpu": True,
            "disable_tqdm": True,
            "logging_steps": 2,
        }
        return DistillationConfig(**{**defaults, **fields})

    return make
