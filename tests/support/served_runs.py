"""Short runs with a served teacher, and the same teacher beside the student."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from support import stored
from support.stored import settings
from support.tiny import llama, rows

from fastkd import SparseTeacher
from fastkd.trainer import DistillationTrainer
from fastkd.trainer.models import ModelOutput, multiply_out
from fastkd.trainer.teachers import LiveTeacher, ServedTeacher

TOP_K = 6


class TopK(LiveTeacher):
    """The teacher beside the student, cut to its most likely tokens."""

    def __call__(self, batch: Any, *requested: Any) -> ModelOutput:
        found = super().__call__(batch, *requested).distribution
        return ModelOutput(SparseTeacher.from_logits(multiply_out(found), TOP_K, tail="bucket"))


def trained(teacher: Any, tmp_path: Path, name: str, data: Any = None, **fields: Any) -> list[dict[str, Any]]:
    """The training log of a student, and its evaluation.

    Args:
        teacher: a teacher, or the URL of one.
        tmp_path, name: where the run writes.
        data: the training data; rows of tokens by default.
        fields: further settings.
    """
    usual = {"max_steps": 5, "max_length": 24, "per_device_train_batch_size": 4, "teacher_top_k": TOP_K}
    args = settings(
        output_dir=str(tmp_path / name), logging_steps=1, learning_rate=1e-2, seed=3, **{**usual, **fields}
    )
    if isinstance(teacher, str):
        args.teacher = teacher
        teacher = ServedTeacher(args)
    trainer = DistillationTrainer(
        llama(0), teacher, args, None, data or rows(24), rows(5, seed=1), stored.tokenizer()
    )
    trainer.train()
    return [*trainer.state.log_history, trainer.evaluate()]


def generated(folder: Path) -> list[dict[str, Any]]:
    """The rows that ``fastkd generate`` wrote."""
    return [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
