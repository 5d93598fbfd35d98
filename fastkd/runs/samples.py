"""Samples of a configuration's data, as its run would read them."""

from __future__ import annotations

from typing import Any

from fastkd.corpora.rows import load_rows
from fastkd.corpora.sample import Sample, look
from fastkd.corpora.tasks import TASKS
from fastkd.runs.classes import settle_classes
from fastkd.trainer.config import DistillationConfig


def look_at(
    field: str, args: DistillationConfig, tokenizer: Any, teacher_tokenizer: Any = None
) -> Sample | None:
    """A sample of ``train_file`` or ``eval_file``; None if there is no such data. For classification it sets
    ``args.problem_type`` and ``args.class_names`` if unset.

    Args:
        teacher_tokenizer: the teacher's, if it is another one.

    Raises:
        ValueError: data that cannot be read.
    """
    data = load_rows(field, args)
    if data is None:
        return None
    settle_classes(args, data)
    return look(field, data, TASKS[args.task], args, tokenizer, needs_answer(field, args), teacher_tokenizer)


def needs_answer(field: str, args: DistillationConfig) -> bool:
    """Whether the rows of ``train_file`` or ``eval_file`` need answers. Those that a run trains on do not if
    the student answers in every step, and no control is trained on the data's answers.
    """
    return field != "train_file" or args.lmbda < 1 or args.control
