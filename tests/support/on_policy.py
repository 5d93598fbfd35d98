"""Rows with prompts, and on-policy training on tiny models."""

from __future__ import annotations

from typing import Any

import torch
from support.tiny import llama, rows

from fastkd.corpora.tasks import TASKS
from fastkd.trainer import DistillationConfig, DistillationTrainer
from fastkd.trainer.on_policy import OnPolicy
from fastkd.trainer.teachers import LiveTeacher

GREEDY = 1e-4  # a temperature at which only the likeliest token is drawn


def prompted(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows with prompts of 1 to 3 tokens."""
    made = []
    for row in rows(count, seed=seed, shortest=5):
        ids = row["input_ids"]
        prompt = 1 + len(ids) % 3
        made.append({"input_ids": ids, "labels": [-100] * prompt + ids[prompt:]})
    return made


def pairs(count: int) -> list[dict[str, Any]]:
    return [{"input_ids": [*row["input_ids"], 1], "labels": [5, 6, 1]} for row in rows(count)]


def policy(
    args: DistillationConfig, teacher: Any = None, task: str = "causal_lm", **options: Any
) -> OnPolicy:
    side = LiveTeacher(llama(1) if teacher is None else teacher, TASKS[task], fused=False)
    options = {"tokenizer": None, "pad_token_id": 0, **options}
    return OnPolicy(side, TASKS[task], args=args, **options)


def resampled(
    student: Any, args: DistillationConfig, data: list[dict[str, Any]], step: int = 0, **options: Any
) -> dict[str, Any]:
    made = policy(args, **options)
    batch = made.task.collate(data, 0)
    (found,) = made.resample(iter([batch]), student, student, step)
    return found


def trained(args: DistillationConfig, student: Any = None, **options: Any) -> DistillationTrainer:
    options = {"train_dataset": prompted(32), "teacher": llama(1), **options}
    trainer = DistillationTrainer(llama(0) if student is None else student, args=args, **options)
    trainer.train()
    return trainer


def weights(trainer: DistillationTrainer) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in trainer.student.state_dict().items()}
