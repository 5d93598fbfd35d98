"""The data sets that a trainer is given: text is encoded, and the result is named for messages."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from fastkd.corpora.known_columns import columns_of, converted
from fastkd.corpora.spans import ALIGNED
from fastkd.corpora.tasks import TASKS
from fastkd.corpora.tasks.base import unread_phrase
from fastkd.corpora.tasks.encoded import ENCODED
from fastkd.trainer.config import DistillationConfig

logger = logging.getLogger(__name__)


def named_data_sets(train: Any, held_out: Any) -> Iterator[tuple[str, Any]]:
    """The data sets of a run, each with its name for messages."""
    if train is not None:
        yield "the training data", train
    several = held_out if isinstance(held_out, dict) else {None: held_out}
    for name, rows in several.items():
        if rows is not None:
            yield f"the evaluation data {name}" if name else "the evaluation data", rows


def encoded(
    dataset: Any, tokenizer: Any, args: DistillationConfig, field: str, teacher_tokenizer: Any = None
) -> Any:
    """Encode data sets that still contain text; return all others unchanged.

    Args:
        teacher_tokenizer: the teacher's, if it is another one.

    Raises:
        ValueError: text without a tokenizer, or encoded rows without the tokens of a teacher with another
            tokenizer.
    """
    if isinstance(dataset, dict):
        return {
            name: encoded(part, tokenizer, args, f"{field}[{name}]", teacher_tokenizer)
            for name, part in dataset.items()
        }
    columns = columns_of(dataset)
    if not columns or "input_ids" in columns:
        if teacher_tokenizer is not None and columns and not {*ALIGNED} <= {*columns}:
            raise ValueError(
                f"{field} is encoded already, for the student alone: cross_tokenizer needs its text"
            )
        unread = [name for name in columns if name not in (*ENCODED, *ALIGNED)]
        if unread and args.process_index == 0:
            logger.warning("%s is encoded already; %s", field, unread_phrase(unread))
        return dataset
    if tokenizer is None:
        raise ValueError(f"{field} holds text: give the tokenizer as processing_class")
    needs_answer = field != "train_dataset" or args.lmbda < 1
    return TASKS[args.task].tokenize(
        converted(field, dataset), tokenizer, args, field, needs_answer, teacher_tokenizer
    )
