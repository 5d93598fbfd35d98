"""Distillation on top of ``transformers``: :class:`DistillationConfig` and :class:`DistillationTrainer`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastkd.trainer.config import DistillationConfig

if TYPE_CHECKING:
    from fastkd.trainer.trainer import DistillationTrainer

__all__ = ["DistillationConfig", "DistillationTrainer"]


def __getattr__(name: str) -> Any:
    """Import the trainer on first use: commands that only read a configuration need not wait for it."""
    if name == "DistillationTrainer":
        from fastkd.trainer.trainer import DistillationTrainer

        return DistillationTrainer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
