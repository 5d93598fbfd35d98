"""Settles the problem and the classes of a run, from settings, models and data, before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastkd.corpora.labels import (
    MULTI_LABEL,
    REGRESSION,
    SINGLE_LABEL,
    classes_in,
    column_order,
    feature_names,
    has_names,
    label_column,
    plain,
    reads_no_labels,
)
from fastkd.trainer.classes import check_order, class_list, named_classes, settled_problem
from fastkd.trainer.config import DistillationConfig
from fastkd.trainer.loading import read_config
from fastkd.trainer.regression import unread_settings
from fastkd.trainer.steps import no_step
from fastkd.trainer.teachers import CachedTeacher, TeacherSource


@dataclass(frozen=True)
class _Side:
    """The classes of one side, as its config names and counts them.

    Attributes:
        names: its classes; None if they have no names.
        width: their number; None where the model has no trained head.
        problem: its ``problem_type``.
    """

    names: list[str] | None = None
    width: int | None = None
    problem: str | None = None


def settle_classes(args: DistillationConfig, rows: Any) -> None:
    """Set ``problem_type`` and ``class_names`` of a classification's ``args``, where they are unset.

    The classes are those of the models where their configs name them, in the student's order if both name the
    same ones; else those of the data. A regression's outputs get numbered names.

    Args:
        args: the settings of any task.
        rows: the raw rows to train or to evaluate on.

    Raises:
        ValueError: models and data that do not go together.
    """
    if args.task != "classification":
        return
    teacher, student = _teacher(args), _student(args)
    problem = settled_problem(
        args.problem_type, student.problem, None if teacher is None else teacher.problem
    )
    args.problem_type = problem or _problem_of(rows)
    if args.problem_type == REGRESSION:
        if sentence := unread_settings(args):
            raise ValueError(sentence)
        width = len(args.class_names or []) or (teacher and teacher.width) or _outputs(rows)
        args.class_names = args.class_names or [f"LABEL_{i}" for i in range(width)]
        return
    if args.class_names is None:
        args.class_names = _names(args, teacher or _Side(), student, rows)
    elif student.width is not None and student.names is not None:
        check_order(args.class_names, student.names)


def check_teacher(args: DistillationConfig) -> None:
    """Compare the teacher's classes with those of the run, which :func:`settle_classes` has set.

    Raises:
        ValueError: they are not the same.
    """
    if args.task != "classification" or args.problem_type == REGRESSION or args.class_names is None:
        return
    teacher, names = _teacher(args), args.class_names
    if teacher is None:
        return
    if teacher.names is not None:
        if column_order(names, teacher.names) is None:
            raise ValueError(
                f"the teacher's classes are {class_list(teacher.names)}, and the data's {class_list(names)}: "
                "both must be the same, in any order"
            )
    elif teacher.width is not None and teacher.width != len(names):
        raise ValueError(
            f"the data has {len(names)} classes and the teacher {teacher.width}: train the teacher on this "
            "data first (fastkd train)"
        )


def check_control(args: DistillationConfig, labelled: int) -> None:
    """Raise a ``ValueError`` if the control of a classification, which learns from the rows with a label
    alone, would learn nothing.

    Args:
        args: the settings of any task.
        labelled: number of training rows with a label.
    """
    if args.task != "classification" or not args.control:
        return
    if labelled == 0:
        raise ValueError(
            "control: true trains the student on the labels alone, and the data has none: set control: false"
        )
    if (reason := no_step(args, labelled)) is not None:
        raise ValueError(
            f"control: true trains the student on the {labelled:,} rows with a label alone, and "
            f"{': '.join(reason)}"
        )


def _teacher(args: DistillationConfig) -> _Side | None:
    source = TeacherSource.parse(args.teacher)
    if source.cache is not None:
        made = CachedTeacher(source.cache).made_from
        names = made.get("class_names")
        return _Side(names if names and has_names(names) else None, made["columns"], made.get("problem_type"))
    return _read("teacher", source.name, args) if source.is_model else None


def _student(args: DistillationConfig) -> _Side:
    if not TeacherSource.parse(args.model).is_model:
        return _Side()
    found = _read("model", str(args.model), args)
    if found is None:
        return _Side()
    return found if args.model_init == "pretrained" else _Side(found.names, None, found.problem)


def _read(field: str, name: str, args: DistillationConfig) -> _Side | None:
    try:
        config = read_config(field, name, args)
    except ValueError:
        return None  # reported where the model is loaded
    made = [kind for kind in config.architectures or () if "SequenceClassification" in kind]
    return _Side(named_classes(config), int(config.num_labels) if made else None, config.problem_type)


def _problem_of(rows: Any) -> str:
    """The problem that the data poses: lists are multi-label, all else has one class per text."""
    column = label_column(rows.column_names or ())
    if column is None:
        return SINGLE_LABEL
    first = next((label for label in rows[column] if label is not None), None)
    return MULTI_LABEL if isinstance(first, (list, tuple)) else SINGLE_LABEL


def _outputs(rows: Any) -> int:
    column = label_column(rows.column_names or ())
    first = None if column is None else next((x for x in rows[column] if plain(x) is not None), None)
    return len(first) if isinstance(first, (list, tuple)) else 1


def _names(args: DistillationConfig, teacher: _Side, student: _Side, rows: Any) -> list[str] | None:
    """The classes, where the settings do not name them.

    Raises:
        ValueError: numbers in the data that mean one class to the student and another one to the teacher.
    """
    order = None
    if teacher.names and student.names and student.width is not None:
        order = column_order(student.names, teacher.names)
    if order is not None:
        known = student.names
        if order != sorted(order) and _has_numbers(rows) and not _unread(args):
            raise ValueError(
                f"the student's classes are {class_list(student.names or [])} in this order, the teacher's "
                f"{class_list(teacher.names or [])}, and the data has numbers alone: write the labels as "
                "names, or set class_names to the student's if the numbers are in its order"
            )
    else:
        known = teacher.names or student.names
    if known:
        return known
    width = teacher.width or student.width
    if width == 1:  # yes or no
        return ["0"]
    found = classes_in(rows, str(args.problem_type))
    # Numbers are columns of the models: the data may lack some of their classes.
    if width and (found is None or (not has_names(found) and len(found) <= width)):
        return [str(i) for i in range(width)]
    return found


def _unread(args: DistillationConfig) -> bool:
    return reads_no_labels(args.kd_ratio, args.divergence)


def _has_numbers(rows: Any) -> bool:
    """Whether the labels are numbers without names, which the data set's own features may give."""
    column = label_column(rows.column_names or ())
    if column is None or feature_names((rows.features or {}).get(column)) is not None:
        return False
    first = next((label for label in rows[column] if label is not None), None)
    parts = first if isinstance(first, (list, tuple)) else [first]
    return any(isinstance(part, (int, float)) for part in parts)
