"""On-policy distillation: the teacher judges what the student itself says (GKD, Agarwal et al. 2024)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastkd.trainer.config import DistillationConfig
from fastkd.trainer.tasks import Task


class OnPolicy:
    """Makes some optimizer steps out of the student's samples.

    Args:
        teacher: who judges them; must be live.
        task: causal_lm or seq2seq.
        tokenizer, pad_token_id: of the student.
        args: with ``lmbda``, ``max_completion_length``, ``sampling_temperature``, ``seed``.
    """

    def __init__(
        self, teacher: Any, task: Task, tokenizer: Any, pad_token_id: int, args: DistillationConfig
    ) -> None:
        raise ValueError("lmbda is not available yet")

    def is_due(self, step: int) -> bool:
        """Whether this optimizer step is on-policy; the same on every process and after resuming."""
        return False

    def resample(self, batches: Iterator[Any], wrapped: Any, student: Any, step: int) -> Iterator[Any]:
        """The batches with their completions replaced by the student's, and ``own_samples`` set."""
        yield from batches
