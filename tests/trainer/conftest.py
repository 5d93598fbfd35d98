"""Fixtures of the trainer's tests: one CPU thread, quick configurations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytest.importorskip("datasets")


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
