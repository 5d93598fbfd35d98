"""Checks before the first step that the teacher has room for its own prompts (``teacher_prompt``)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastkd.corpora.labels import IGNORE_INDEX
from fastkd.corpora.tasks import Task
from fastkd.corpora.teacher_prompts import TEACHER_PROMPT
from fastkd.trainer.config import DistillationConfig
from fastkd.trainer.row_limits import trained_positions, windows
from fastkd.trainer.teachers import LiveTeacher, SelfTeacher, ServedTeacher, Teacher

logger = logging.getLogger(__name__)


def longest_prompted(rows: Any, task: Task, args: DistillationConfig) -> tuple[int, int] | None:
    """The most tokens that the teacher reads for a row, and the number of that row, counted from 0.

    They are its prompt and the answer, for an encoder-decoder its source. Where the student writes answers,
    they may have ``max_completion_length`` tokens. None without prompts of the teacher, and for streams.
    """
    if not hasattr(rows, "column_names") or not hasattr(rows, "__len__"):
        return None
    if TEACHER_PROMPT not in rows.column_names or not len(rows):
        return None
    columns = rows.select_columns([TEACHER_PROMPT, "labels"])
    lengths = [prompted_length(len(row[TEACHER_PROMPT]), row["labels"], task, args) for row in columns]
    longest = max(lengths)
    return longest, lengths.index(longest)


def problem(longest: int, limit: int | None, task: Task, side: str) -> tuple[str, str] | None:
    """Why the teacher cannot read its prompts, and the remedy; None if it has room.

    Args:
        longest: the most tokens that it reads for a row.
        limit: the most that it can read; None if there is no limit.
        side: the teacher's name.
    """
    if limit is None or longest <= limit:
        return None
    what = "the source of teacher_prompt has"
    if task.name != "seq2seq":
        what = "teacher_prompt and the answer have"
    return (
        f"{what} {longest:,} tokens, and the {side} {limit:,} positions",
        "shorten teacher_prompt or the columns that it names, or lower max_length or max_completion_length",
    )


def check_teacher_prompts(
    rows: Any, what: str, task: Task, args: DistillationConfig, teachers: Mapping[str, Teacher]
) -> None:
    """Raise a ``ValueError`` if a teacher cannot read a row with the prompt that it has for it.

    Args:
        rows: encoded rows; streams are not checked.
        what: names the rows in the message.
        teachers: by name.
    """
    found = longest_prompted(rows, task, args)
    if found is None:
        return
    longest, number = found
    for name, teacher in teachers.items():
        side = f"teacher {name}".strip()
        limit = trained = None
        if isinstance(teacher, (LiveTeacher, SelfTeacher)):
            limit, trained = windows(teacher.model)[0], trained_positions(teacher.model.config)
        elif isinstance(teacher, ServedTeacher) and teacher.model.longest is not None:
            limit = teacher.model.longest - 1  # a server also writes a token
        if (wrong := problem(longest, limit, task, side)) is not None:
            raise ValueError(f"{what}, row {number + 1} of those with text: {wrong[0]}: {wrong[1]}")
        if limit is None and trained is not None and longest > trained:
            logger.warning(
                "%s, row %d: with teacher_prompt the %s reads %d tokens, and it was trained on %d at most",
                *(what, number + 1, side, longest, trained),
            )


def prompted_length(prompt: int, labels: Sequence[int], task: Task, args: DistillationConfig) -> int:
    """The tokens that the teacher reads for a row.

    Args:
        prompt: those of its prompt.
        labels: the row's labels.
    """
    if task.name == "seq2seq":
        return prompt
    first = next((i for i, label in enumerate(labels) if label != IGNORE_INDEX), len(labels))
    given = len(labels) - first if args.lmbda < 1 else 0
    written = args.max_completion_length if args.lmbda > 0 else 0
    return prompt + max(given, written)
