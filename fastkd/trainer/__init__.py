"""Distillation on top of ``transformers``: :class:`DistillationConfig` and :class:`DistillationTrainer`."""

from fastkd.trainer.config import DistillationConfig
from fastkd.trainer.trainer import DistillationTrainer

__all__ = ["DistillationConfig", "DistillationTrainer"]
