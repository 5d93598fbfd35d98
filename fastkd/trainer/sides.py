"""Both sides of a run: the student's head, the teacher's side, and the checks that they fit together."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fastkd.corpora.contexts import evaluating
from fastkd.corpora.tasks import Task
from fastkd.corpora.vocabulary import too_narrow
from fastkd.trainer.config import DistillationConfig
from fastkd.trainer.heads import find_linear_head, output_width
from fastkd.trainer.models import LinearHead
from fastkd.trainer.teachers import LiveTeacher, Teacher
from fastkd.trainer.zero import gathered, zero_stage

logger = logging.getLogger(__name__)


def student_head(model: PreTrainedModel, args: DistillationConfig) -> LinearHead | None:
    """The student's linear head, for the fused loss; None if the loss is computed from logits.

    Raises:
        ValueError: ``fused_head="true"`` with a head that is not linear.
    """
    if args.fused_head == "false":
        return None
    head: LinearHead | str
    if args.task == "classification":
        head = "a classifier has few columns and no fused loss"
    elif zero_stage(args) == 3:
        head = "ZeRO-3 shards the head, and its weight is there only while the head itself runs"
    else:
        head = find_linear_head(model)
    if isinstance(head, LinearHead):
        return head
    if args.fused_head == "true":
        raise ValueError(f"fused_head=true, but {head}")
    return None


def teacher_side(
    model: PreTrainedModel, teacher: PreTrainedModel | Teacher | None, task: Task, fused: bool
) -> Teacher | None:
    """The teacher, with a plain model frozen in place as a :class:`LiveTeacher`.

    Raises:
        ValueError: a teacher that shares weights with the student.
    """
    if not isinstance(teacher, nn.Module):
        return teacher
    if not {id(p) for p in teacher.parameters()}.isdisjoint(map(id, model.parameters())):
        raise ValueError(
            "student and teacher share weights, and a teacher is frozen: give the teacher its own copy"
        )
    return LiveTeacher(teacher, task, fused)


def name_padding(models: dict[str, Any], pad_token_id: int) -> None:
    """Give classifiers without a padding token the batch's: a decoder finds the end of a text by it, and
    refuses batches otherwise. A saved student keeps it.
    """
    for side, model in models.items():
        config = model.config.get_text_config()
        if getattr(config, "pad_token_id", None) is None:
            logger.info("the %s has no padding token; %d is used", side, pad_token_id)
            config.pad_token_id = pad_token_id


def common_columns(model: PreTrainedModel, teacher: Teacher | None, tokenizer: Any, task: Task) -> int | None:
    """Number of output columns that both sides have; None if they have the same. Widths may differ by padding
    columns, which belong to no token. (For classes, see :func:`fastkd.trainer.classes.fit_classes`.)

    Raises:
        ValueError: widths that differ by more than padding or by columns that are not known to be padding.
    """
    if task.name == "classification":
        return None
    if hasattr(tokenizer, "__len__"):
        columns = {"student": output_width(model)}
        if teacher is not None:
            columns["teacher"] = teacher.columns
        if (trouble := too_narrow(len(tokenizer), columns)) is not None:
            raise ValueError(f"{trouble}: the two were made for different vocabularies")
    if teacher is None:
        return None
    widths = output_width(model), teacher.columns
    if widths[0] == widths[1]:
        return None
    if tokenizer is None:
        raise ValueError(
            f"the student has {widths[0]} output columns and the teacher {widths[1]}: "
            "give the tokenizer as processing_class to tell padding from tokens"
        )
    return min(widths)


def padding_token(model: PreTrainedModel, tokenizer: Any) -> int:
    """The token that fills up the rows of a batch."""
    for source in (tokenizer, model.config):
        for name in ("pad_token_id", "eos_token_id"):
            value = getattr(source, name, None)
            value = value[0] if isinstance(value, list) else value
            if value is not None:
                return value
    return 0  # any token will do, since padding is masked


@torch.no_grad()
def check_documents_are_apart(model: Any, task: Task) -> None:
    """Raise a ``ValueError`` if the model attends from one packed document to another."""
    documents = [[1, 2, 3], [4, 5]]
    alone, packed = (
        task.collate([{"input_ids": ids, "position_ids": list(positions)}], 0)
        for ids, positions in (
            (documents[1], range(2)),
            ([*documents[0], *documents[1]], [*range(3), *range(2)]),
        )
    )
    with evaluating(model), gathered(model):
        logits = [
            model(**{k: v.to(model.device) if isinstance(v, Tensor) else v for k, v in inputs.items()})
            .logits[0, -2:]
            .float()
            for inputs in (task.model_inputs(model, batch) for batch in (alone, packed))
        ]
    if (logits[0] - logits[1]).abs().max() > 0.02 * logits[0].abs().max():
        raise ValueError(
            f"{type(model).__name__} attends from one packed text to the one before it: set packing: false"
        )
