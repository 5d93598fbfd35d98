"""A teacher with a tokenizer of its own: it reads its own tokens of the text that the student reads."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fastkd.corpora.spans import (
    ALIGNED,
    COUNT,
    SINGLE,
    SPANS,
    SPLIT,
    TEACHER_IDS,
    TEACHER_LABELS,
    TEACHER_SPANS,
    kinds,
)
from fastkd.corpora.tasks import IGNORE_INDEX, Batch, Task
from fastkd.corpora.tasks.base import Row, pad
from fastkd.trainer.models import NOTHING_MORE, ModelOutput, Requested
from fastkd.trainer.teachers.live import LiveTeacher

# The key of a batch's mask of the teacher's tokens; its other keys are those of the rows.
TEACHER_MASK = "teacher_attention_mask"


class AlignedColumns:
    """The teacher's tensors of a batch, for a collator: its tokens ``(rows, longest)`` with their mask and
    labels, the number of each label's span on both sides, the largest number of spans in a row, and the
    numbers of spans of each kind (:func:`fastkd.corpora.spans.kinds`).

    Args:
        task: causal_lm or seq2seq.
        pad_token_id: fills up the teacher's rows.
    """

    def __init__(self, task: Task, pad_token_id: int) -> None:
        self.task, self.pad_token_id = task, pad_token_id

    def __call__(self, rows: Sequence[Row], batch: Batch) -> Batch:
        if not all(name in row for row in rows for name in ALIGNED):
            return {}
        theirs = [{"input_ids": row[TEACHER_IDS], "labels": row[TEACHER_LABELS]} for row in rows]
        made = self.task.collate(theirs, self.pad_token_id)
        found = [kinds(row[SPANS], row[TEACHER_SPANS]) for row in rows]
        return {
            TEACHER_IDS: made["input_ids"],
            TEACHER_MASK: made["attention_mask"],
            TEACHER_LABELS: made["labels"],
            SPANS: pad([row[SPANS] for row in rows], IGNORE_INDEX),
            TEACHER_SPANS: pad([row[TEACHER_SPANS] for row in rows], IGNORE_INDEX),
            COUNT: max(1, *(max(row[SPANS], default=0) + 1 for row in rows)),
            SINGLE: sum(single for single, _ in found),
            SPLIT: sum(split for _, split in found),
        }


class CrossedTeacher:
    """A live teacher that reads its own tokens of a batch.

    Its output has a distribution for each of its own positions, not for the student's.

    Args:
        teacher: the teacher.
    """

    live = True

    def __init__(self, teacher: LiveTeacher) -> None:
        self.teacher = teacher

    @property
    def columns(self) -> int:
        return self.teacher.columns

    def to(self, device: torch.device) -> None:
        self.teacher.to(device)

    def __call__(self, batch: Batch, requested: Requested = NOTHING_MORE) -> ModelOutput:
        """The distributions at the teacher's positions.

        Raises:
            ValueError: a batch without the teacher's tokens, or layers are requested.
        """
        if requested != NOTHING_MORE:
            raise ValueError("cross_tokenizer gives both sides other tokens, whose layers cannot be compared")
        return self.teacher(teachers_batch(batch))


def teachers_batch(batch: Batch) -> Batch:
    """The teacher's tokens, mask and labels under the names that a task gives them.

    Raises:
        ValueError: a batch without them.
    """
    if TEACHER_IDS not in batch:
        raise ValueError(
            "cross_tokenizer is set, and the batch has no tokens of the teacher: give text, not encoded "
            "rows, and leave data_collator unset"
        )
    names = {"input_ids": TEACHER_IDS, "attention_mask": TEACHER_MASK, "labels": TEACHER_LABELS}
    return {name: batch[key] for name, key in names.items()}
