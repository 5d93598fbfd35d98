"""A teacher that reads other prompts than the student, and judges the same answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastkd import SparseTeacher
from fastkd.corpora.tasks import IGNORE_INDEX, Batch, Task
from fastkd.corpora.tasks.base import Row, pad
from fastkd.corpora.teacher_prompts import TEACHER_PROMPT
from fastkd.trainer.models import NOTHING_MORE, Distribution, HiddenLogits, ModelOutput, Requested
from fastkd.trainer.teachers.base import Teacher

# Keys of a batch: the tokens of the teacher's prompts ``(rows, longest)``, and how many each has ``(rows,)``.
PROMPTS, LENGTHS = "teacher_prompts", "teacher_prompt_lengths"


def prompts_of_teacher(rows: Sequence[Row], batch: Batch) -> Batch:
    """The tensors ``PROMPTS`` and ``LENGTHS`` of a batch, for a collator; none where a row has no prompt."""
    if not all(TEACHER_PROMPT in row for row in rows):
        return {}
    prompts = [list(row[TEACHER_PROMPT]) for row in rows]
    return {PROMPTS: pad(prompts, 0), LENGTHS: torch.tensor([len(prompt) for prompt in prompts])}


class PromptedTeacher:
    """Another teacher, which reads ``teacher_prompt`` in place of the student's prompt.

    The answers are the same tokens on both sides. The teacher's distributions of them are moved to the
    positions at which the student predicts them.

    Args:
        teacher: a live teacher.
        task: causal_lm or seq2seq.
        pad_token_id: fills up the teacher's rows.
    """

    def __init__(self, teacher: Teacher, task: Task, pad_token_id: int) -> None:
        self.teacher, self.task, self.pad_token_id = teacher, task, pad_token_id

    @property
    def columns(self) -> int:
        return self.teacher.columns

    @property
    def live(self) -> bool:
        return self.teacher.live

    def to(self, device: torch.device) -> None:
        self.teacher.to(device)

    def __call__(self, batch: Batch, requested: Requested = NOTHING_MORE) -> ModelOutput | None:
        """The distributions at the student's positions.

        Raises:
            ValueError: a batch without the teacher's prompts, or layers are requested.
        """
        if requested != NOTHING_MORE:
            raise ValueError("teacher_prompt gives both sides other tokens, whose layers cannot be compared")
        if PROMPTS not in batch:
            raise ValueError(
                "teacher_prompt is set, and the batch has no prompts of the teacher: give text with the "
                "columns that it names, and leave data_collator unset"
            )
        theirs, places = self.moved(batch)
        found = self.teacher(theirs)
        if found is None or places is None:
            return found
        return replace(found, distribution=_gathered(found.distribution, places))

    def moved(self, batch: Batch) -> tuple[Batch, Tensor | None]:
        """The teacher's batch, and ``(rows, length)``, its position for each of the student's; None if they
        are the same.
        """
        labels, device = batch["labels"], batch["labels"].device
        prompts = [
            row[:length] for row, length in zip(batch[PROMPTS].tolist(), batch[LENGTHS].tolist(), strict=True)
        ]
        if self.task.name == "seq2seq":
            made = self.task.collate(
                [
                    {"input_ids": ids, "labels": row}
                    for ids, row in zip(prompts, labels.tolist(), strict=True)
                ],
                self.pad_token_id,
            )
            return {name: value.to(device) for name, value in made.items()}, None
        known = labels != IGNORE_INDEX
        lengths = batch["attention_mask"].sum(1)
        # A row without labels has nothing to judge; its answer begins at its end.
        first = torch.where(known.any(1), known.int().argmax(1), lengths)
        rows: list[dict[str, Any]] = []
        parts = zip(
            batch["input_ids"].tolist(),
            labels.tolist(),
            prompts,
            first.tolist(),
            lengths.tolist(),
            strict=True,
        )
        for ids, said, prompt, start, end in parts:
            rows.append(
                {
                    "input_ids": prompt + ids[start:end],
                    "labels": [IGNORE_INDEX] * len(prompt) + said[start:end],
                }
            )
        made = self.task.collate(rows, self.pad_token_id)
        shift = batch[LENGTHS].to(device) - first
        places = torch.arange(labels.shape[1], device=device) + shift[:, None]
        longest = made["input_ids"].shape[1]
        theirs = {name: value.to(device) for name, value in made.items()}
        return theirs, places.clamp(0, longest - 1)


def _gathered(given: Distribution, places: Tensor) -> Distribution:
    """The distributions at other positions of their rows."""

    def at(x: Tensor) -> Tensor:
        index = places[..., None].expand(*places.shape, x.shape[-1])
        return x.gather(1, index)

    if isinstance(given, HiddenLogits):
        return replace(given, hidden=at(given.hidden))
    if isinstance(given, SparseTeacher):
        return SparseTeacher(at(given.indices), at(given.logprobs), given.tail)
    return at(given)
