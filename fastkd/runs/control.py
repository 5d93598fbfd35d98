"""The control of a classification with unlabelled rows: it learns from the others, for as many steps."""

from __future__ import annotations

from typing import Any

from fastkd.corpora.labels import is_masked, is_unlabelled
from fastkd.trainer.config import DistillationConfig, plain


def labelled(rows: Any, args: DistillationConfig) -> int:
    """The number of encoded rows that have a label; of tasks that are no classification, all rows count."""
    if args.task != "classification":
        return len(rows)
    return sum(not is_unlabelled(label) and not is_masked(label) for label in rows["labels"])


def fewer_rows(rows: Any, args: DistillationConfig) -> dict[str, Any]:
    """The report's entry on the rows that the student alone learns from; empty where the control has all.

    Args:
        rows: the encoded training rows.
        args: the student's settings.
    """
    count = labelled(rows, args)
    return (
        {}
        if not args.control or count == len(rows)
        else {"control_rows": {"with_label": count, "of": len(rows)}}
    )


def keep_length(control: DistillationConfig, rows: Any, student: dict[str, Any]) -> None:
    """Have the control make as many optimizer steps as the student made, each on a whole batch.

    The trainer leaves out rows without a label, which tell a control nothing: with the student's batches,
    most of its steps would have few labels or none. So its epochs are shorter, and it makes more of them.
    All that happens once an epoch of the student happens after as many steps. A control that has a label in
    every row keeps the settings of the student.

    Args:
        control: the control's settings, which are changed.
        rows: the encoded training rows.
        student: the student's part of the report.
    """
    if labelled(rows, control) == len(rows):
        return
    control.max_steps = int(student["steps"])
    batch = control.per_device_train_batch_size * control.world_size * control.gradient_accumulation_steps
    each = max(1, -(-len(rows) // batch))
    for name in ("eval", "save", "logging"):
        if plain(getattr(control, f"{name}_strategy")) == "epoch":
            kind = type(getattr(control, f"{name}_strategy"))
            setattr(control, f"{name}_strategy", kind("steps"))
            setattr(control, f"{name}_steps", each)
