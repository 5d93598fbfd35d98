"""Checks the labels of a classification: classes that are absent or alone, their order, texts without any."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastkd.corpora.labels import (
    MULTI_LABEL,
    REGRESSION,
    column_order,
    is_masked,
    is_unlabelled,
    rows_with_labels,
)
from fastkd.corpora.listing import listed
from fastkd.corpora.unlabelled import missing_labels
from fastkd.runs.classes import check_control, check_teacher
from fastkd.runs.doctor.findings import Case, Check, Finding, count
from fastkd.trainer.classes import named_classes


def _labels(case: Case) -> list[Any]:
    """The labels of the rows that were looked at, unless a classifier is not what is trained."""
    if case.args.task != "classification" or case.train is None:
        return []
    samples = [sample for sample in (case.train, case.held_out) if sample is not None]
    return [row["labels"] for sample in samples for row in sample.kept if not is_masked(row["labels"])]


def unlabelled(case: Case) -> Iterator[Finding]:
    """Texts without a label, of which only the teacher says something. All rows are counted, since a few
    labels among many texts would hardly be in a sample.
    """
    if case.args.task != "classification":
        return
    for sample in (case.train, case.held_out):
        if sample is None or not (missing := sample.total - (known := rows_with_labels(sample.data))):
            continue
        without = f"{count(missing, sample.total)} of {sample.field} have no label"
        columns = sample.data.column_names
        if (sentence := missing_labels(known, missing, case.args, sample.field, columns)) is not None:
            yield Finding("error", "labels_missing", sentence)
        elif sample is case.held_out:
            how = f"accuracy and ce are those of the {known:,} others" if known else "there is no accuracy"
            yield Finding("note", "unlabelled", f"{without}: {how}")
        elif case.args.kd_ratio == 0 and not case.args.feature_matches:
            yield Finding(
                "warning",
                "unlabelled",
                f"{without} and are left out: kd_ratio: 0 learns from labels alone",
                "set kd_ratio above 0, to learn from the teacher there",
            )
        else:
            control = "; the control leaves them out" if case.args.control else ""
            yield Finding(
                "note",
                "unlabelled",
                f"{without} and are learned from the teacher alone, without cross-entropy; {known:,} have "
                f"one{control}",
            )


def control(case: Case) -> Iterator[Finding]:
    """A control without labels to learn from, or with too few for a batch."""
    if case.args.task == "classification" and case.train is not None:
        try:
            check_control(case.args, rows_with_labels(case.train.data))
        except ValueError as error:
            yield Finding("error", "control_unlabelled", str(error))


def one_class(case: Case) -> Iterator[Finding]:
    """Labels that are the same everywhere."""
    labels = [label for label in _labels(case) if not is_unlabelled(label)]
    if len(labels) > 1 and all(label == labels[0] for label in labels):
        what = "label" if case.args.problem_type in (MULTI_LABEL, REGRESSION) else "class"
        yield Finding(
            "error",
            "one_class",
            f"all rows looked at have the {what} {labels[0]}: there is nothing to learn",
            "name the right column with column_mapping: {label: ...}",
        )


def absent_classes(case: Case) -> Iterator[Finding]:
    """Classes that no row has."""
    labels, names = _labels(case), case.args.class_names or []
    if not labels or case.args.problem_type == REGRESSION:
        return
    if case.args.problem_type == MULTI_LABEL:
        seen = {i for label in labels for i, part in enumerate(label) if part == 1}
    else:
        seen = set(labels)
    missing = [name for i, name in enumerate(names) if i not in seen]
    if missing and len(missing) < len(names):
        yield Finding("note", "absent_classes", f"no row looked at has the class {listed(missing)}")


def teacher_classes(case: Case) -> Iterator[Finding]:
    """A teacher of other classes than the data's."""
    if case.train is not None:
        try:
            check_teacher(case.args)
        except ValueError as error:
            yield Finding("error", "teacher_classes", str(error))


def class_order(case: Case) -> Iterator[Finding]:
    """A teacher that numbers the classes in another order, or does not say in which."""
    names = case.args.class_names
    if not _labels(case) or not names or case.teacher_config is None:
        return
    theirs = named_classes(case.teacher_config)
    if theirs is not None:
        order = column_order(names, theirs)
        if order is not None and order != sorted(order):
            yield Finding(
                "note",
                "class_order",
                f"the teacher numbers the classes {listed(theirs)} and the run {listed(names)}: "
                "the teacher's columns are read in the run's order",
            )
    elif not all(name in (f"LABEL_{i}", str(i)) for i, name in enumerate(names)):
        yield Finding(
            "warning",
            "classes_unnamed",
            f"the teacher's classes have no names: its columns are taken for {listed(names)} in this order",
            "set class_names to the classes in the teacher's order, or id2label in its config.json",
        )


CHECKS: tuple[Check, ...] = (unlabelled, control, one_class, absent_classes, teacher_classes, class_order)
