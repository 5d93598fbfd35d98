"""Makes both sides of a classification fit: the problem, the classes and their order."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Sequence
from itertools import islice
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from fastkd.corpora.known_columns import columns_of
from fastkd.corpora.labels import (
    IGNORE_INDEX,
    MULTI_LABEL,
    REGRESSION,
    SINGLE_LABEL,
    UNLABELLED,
    classes_in,
    column_order,
    has_names,
    label_column,
    reads_no_labels,
)
from fastkd.corpora.listing import listed
from fastkd.trainer.config import DistillationConfig
from fastkd.trainer.regression import unread_settings
from fastkd.trainer.teachers import ReorderedTeacher, Teacher

logger = logging.getLogger(__name__)

# Encoded rows whose labels are checked before the first step.
_CHECKED = 100_000
# Classes that a message names.
_NAMED = 20


def fit_classes(
    model: PreTrainedModel,
    teacher: Teacher | None,
    args: DistillationConfig,
    datasets: Sequence[Any],
) -> Teacher | None:
    """Check that both sides predict the same thing, and write it into ``args`` and the models' configs.

    Sets ``args.problem_type``, and ``args.class_names`` where rows of text need them.

    Args:
        model: the student.
        teacher: its teacher.
        args: the settings of the run.
        datasets: the rows, encoded or not, or None.

    Returns:
        The teacher, with its classes in the student's order.

    Raises:
        ValueError: sides that predict different things, classes whose order is ambiguous, settings that the
            problem does not have.
    """
    problem = _problem(model, teacher, args, datasets)
    if problem == REGRESSION and (sentence := unread_settings(args)):
        raise ValueError(sentence)
    if problem == MULTI_LABEL:  # not so: the loss smooths the labels itself
        warnings.filterwarnings("ignore", "Label smoothing is not compatible with multi-label")
    args.problem_type = problem
    live = getattr(teacher, "model", None)
    for side in (model, *(() if live is None else (live,))):
        side.config.problem_type = problem
    columns = int(model.config.num_labels or 0)
    if teacher is not None and teacher.columns != columns:
        raise ValueError(f"the student has {columns} classes and the teacher {teacher.columns}")
    order = None if problem == REGRESSION and columns == 1 else _order(model, teacher, args, datasets)
    text = [rows for rows in datasets if rows is not None and not _is_encoded(rows)]
    if text and args.class_names is None and problem != REGRESSION:
        args.class_names = _data_classes(text[0], problem, columns)
    if (names := args.class_names) and has_names(names) and named_classes(model.config) is None:
        model.config.id2label = dict(enumerate(names))
        model.config.label2id = {name: number for number, name in enumerate(names)}
    if teacher is None or order is None:
        return teacher
    return _reordered(teacher, order, problem)


def in_order(teacher: Teacher, names: Sequence[str] | None, problem: str | None) -> Teacher:
    """A teacher with its classes in the order of the names, if it names its own.

    Raises:
        ValueError: it has other classes.
    """
    theirs = teacher_classes(teacher)
    if names is None or theirs is None or problem == REGRESSION:
        return teacher
    order = column_order(names, theirs)
    if order is None:
        raise ValueError(
            f"the teacher's classes are {class_list(theirs)}, and the data's {class_list(names)}"
        )
    return teacher if order == sorted(order) else _reordered(teacher, order, problem)


def _reordered(teacher: Teacher, order: list[int], problem: str | None) -> Teacher:
    logger.warning(
        "the teacher numbers the classes in another order: its columns are read as %s",
        ", ".join(map(str, order)),
    )
    return ReorderedTeacher(teacher, order, -2 if problem == MULTI_LABEL else -1)


def named_classes(config: Any) -> list[str] | None:
    """The classes of a model, if its config names them."""
    names = list((getattr(config, "id2label", None) or {}).values())
    return names if has_names(names) else None


def teacher_classes(teacher: Teacher | None) -> list[str] | None:
    """The names of a teacher's classes, a model's or a cache's; None where they have none."""
    if (live := getattr(teacher, "model", None)) is not None:
        return named_classes(live.config)
    names = getattr(teacher, "made_from", {}).get("class_names")
    return list(names) if names and has_names(names) else None


def settled_problem(given: str | None, student: str | None, teacher: str | None) -> str | None:
    """The problem that the run solves: as set, else the teacher's, else the student's; None if none says.

    Raises:
        ValueError: the teacher solves another one.
    """
    other = given or (student if teacher is not None else None)
    if teacher is not None and other not in (None, teacher):
        raise ValueError(
            f"problem_type is {other} {'here' if given else 'in the student'}, and the teacher's config says "
            f"{teacher}: both must predict the same thing"
        )
    return given or teacher or student


def _problem(
    model: PreTrainedModel, teacher: Teacher | None, args: DistillationConfig, datasets: Sequence[Any]
) -> str:
    live = getattr(teacher, "model", None)
    if live is not None:
        theirs = getattr(live.config, "problem_type", None)
    else:
        theirs = getattr(teacher, "made_from", {}).get("problem_type")
    found = settled_problem(args.problem_type, getattr(model.config, "problem_type", None), theirs)
    columns = int(model.config.num_labels or 0)
    if found is None:
        first = next((label for rows in datasets for label in _labels(rows, 1)), None)
        found = MULTI_LABEL if isinstance(first, (list, tuple)) else None
    if columns == 1 and found in (None, SINGLE_LABEL):
        raise ValueError(
            "the student has one output column, of which a softmax is always 1: set problem_type: "
            f"{REGRESSION} (numbers) or {MULTI_LABEL} (yes or no), or give the student more classes"
        )
    return found or SINGLE_LABEL


def _order(
    model: PreTrainedModel, teacher: Teacher | None, args: DistillationConfig, datasets: Sequence[Any]
) -> list[int] | None:
    """The teacher's column of each class; None if both sides have the same order.

    Raises:
        ValueError: other classes, or numbers in the data that mean one class to the student and another one
            to the teacher.
    """
    own, theirs = named_classes(model.config), teacher_classes(teacher)
    given = args.class_names
    if given is not None and own is not None:
        check_order(given, own)
    ours = given if given is not None and has_names(given) else own
    text = any(rows is not None and not _is_encoded(rows) for rows in datasets)
    if text and args.class_names is None:
        args.class_names = ours or theirs
    if theirs is None or ours is None:
        return None
    order = column_order(ours, theirs)
    if order is None:
        raise ValueError(
            f"the teacher's classes are {class_list(theirs)}, and the student's {class_list(ours)}: both "
            "must have the same"
        )
    if order == sorted(order):
        return None
    numbers = any(rows is not None and _is_encoded(rows) for rows in datasets)
    if numbers and given is None and not reads_no_labels(args.kd_ratio, args.divergence):
        raise ValueError(
            f"the student has the classes {class_list(ours)} in this order, the teacher {class_list(theirs)} "
            "and the data numbers alone: set class_names to the classes in the order of those numbers"
        )
    return order


def class_list(names: Sequence[str]) -> str:
    """The classes as a phrase; of very many, the first ones."""
    return listed(names, _NAMED)


def check_order(given: Sequence[str], own: Sequence[str]) -> None:
    """Raise a ``ValueError`` if the names are the student's own in another order."""
    order = column_order(given, own)
    if order is not None and order != sorted(order):
        raise ValueError(
            f"the student's classes are {class_list(own)} in this order, and class_names is "
            f"{class_list(given)}: set class_names to the student's"
        )


def _data_classes(rows: Any, problem: str, columns: int) -> list[str] | None:
    """The classes of rows of text, for models that do not name theirs.

    Raises:
        ValueError: more classes than the models have.
    """
    rows = next(iter(rows.values())) if isinstance(rows, dict) else rows
    found = classes_in(rows, problem) if hasattr(rows, "__len__") else None  # a stream is read once
    if found is None or has_names(found):
        if found is not None and len(found) != columns:
            raise ValueError(f"the data has {len(found)} classes and the student {columns}")
        return found or [str(i) for i in range(columns)]
    return [str(i) for i in range(columns)]


def _is_encoded(rows: Any) -> bool:
    if isinstance(rows, dict):
        return all(map(_is_encoded, rows.values()))
    columns = columns_of(rows)
    return not columns or "input_ids" in columns


def _labels(rows: Any, most: int) -> list[Any]:
    """The first labels of a data set that can be looked into; none of a stream."""
    if isinstance(rows, dict):
        return [label for part in rows.values() for label in _labels(part, most)]
    if rows is None or not hasattr(rows, "__len__") or not hasattr(rows, "__getitem__"):
        return []
    names = getattr(rows, "column_names", None)
    if names:
        column = label_column(names)
        return [] if column is None else list(islice(rows[column], most))
    found = (rows[i] for i in range(min(most, len(rows))))
    return [row[label_column(row)] for row in found if isinstance(row, dict) and label_column(row)]


def check_labels(rows: Any, what: str, model: PreTrainedModel, problem: str | None) -> None:
    """Check the labels of a classifier's encoded rows.

    Args:
        rows: a data set.
        what: its name, for messages.
        model: the student.
        problem: its problem; None if it is no classifier, whose labels are not checked.

    Raises:
        ValueError: a label that the problem does not have.
    """
    if problem is None:
        return
    for number, label in enumerate(_labels(rows, _CHECKED)):
        if (wrong := _wrong(label, problem, int(model.config.num_labels or 0))) is not None:
            raise ValueError(f"{what}: the label {label!r} of row {number} (counted from 0) {wrong}")


def _wrong(label: Any, problem: str, columns: int) -> str | None:
    """The fault of an encoded label, as the end of a sentence; None if it has none."""
    label = label.tolist() if isinstance(label, Tensor) else label
    listed = isinstance(label, (list, tuple))
    parts = list(label) if listed else [label]
    if problem == SINGLE_LABEL:
        if listed:
            return f"is a list, and the student has one class per text: set problem_type: {MULTI_LABEL}"
        if isinstance(label, float) or label is None:
            return f"is no class number: set problem_type: {REGRESSION} to predict numbers"
        known = label in (IGNORE_INDEX, UNLABELLED) or 0 <= label < columns
        return None if known else f"is not one of the student's {columns} classes, numbered from 0"
    if problem == MULTI_LABEL:
        if (
            not listed
            or len(parts) != columns
            or not all(x in (0, 1, UNLABELLED, IGNORE_INDEX) for x in parts)
        ):
            return (
                f"is refused: a multi-label student with {columns} classes reads a list of {columns} numbers "
                f"that are 0 or 1 (set problem_type: {SINGLE_LABEL} for one class per text)"
            )
        return None
    if len(parts) != columns or not all(isinstance(x, (int, float)) for x in parts):
        return f"is refused: a regression with {columns} outputs reads {columns} numbers"
    return "is not finite" if any(math.isinf(x) for x in parts) else None
