"""The fields that name several teachers: ``teachers``, and ``teacher_weights`` for a mixture of them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

# With several teachers, the field ``teacher`` is this and their names.
SEVERAL = "several: "


def named(names: Iterable[str]) -> str:
    """The text of ``teacher`` where ``teachers`` has these names."""
    return SEVERAL + ", ".join(names)


def check_teachers(teachers: Any, teacher: str | None, weights: Any, task: str, packing: bool) -> None:
    """Raise a ``ValueError`` for fields that do not describe several teachers.

    Args:
        teachers: names of teachers, or None.
        teacher: the field ``teacher``.
        weights: the field ``teacher_weights``.
        task, packing: those of the run.
    """
    if teachers is None:
        if weights is not None:
            raise ValueError("teacher_weights are for several teachers: set teachers")
        return
    if len(teachers) < 2:
        raise ValueError("teachers names fewer than two: set teacher instead")
    if teacher not in (None, named(teachers)):
        raise ValueError("teacher and teachers are both set: leave out one of them")
    if task == "classification":
        raise ValueError("teachers is for models that write, not for classification")
    if weights is None:
        if packing:
            raise ValueError("packing joins rows, which may have different teachers: set packing: false")
        return
    if set(weights) != set(teachers):
        raise ValueError(
            f"teacher_weights names {', '.join(weights)}, and teachers {', '.join(teachers)}: they must agree"
        )
    if not all(0 <= weight < math.inf for weight in weights.values()) or not any(weights.values()):
        raise ValueError(f"teacher_weights must be numbers from 0, and not all of them 0: {weights}")
