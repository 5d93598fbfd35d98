"""Texts of a classifier without a label: which runs learn from them, and the sentence that refuses others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from fastkd.corpora.known_columns import near
from fastkd.corpora.labels import COLUMNS, LABEL_DIVERGENCES


class LossSettings(Protocol):
    """The settings that say what a run learns of a text without a label.

    Attributes:
        kd_ratio, divergence: those of the loss.
        feature_matches: losses between layers of both models, which read no labels.
    """

    kd_ratio: float
    divergence: str
    feature_matches: Any


def taught_without_labels(settings: LossSettings) -> bool:
    """Whether a run learns from texts without a label: from the teacher's distributions, or its layers."""
    return settings.kd_ratio > 0 or bool(settings.feature_matches)


def missing_labels(
    known: int, missing: int, settings: LossSettings, field: str, columns: Sequence[str] = ()
) -> str | None:
    """The reason why a run does not take texts without a label, and its remedy; None if there is none.

    Args:
        known: number of rows with a label.
        missing: number of rows without one.
        settings: those of the run.
        field: name of the data, for the sentence.
        columns: those of the data.
    """
    if missing and settings.kd_ratio > 0 and settings.divergence in LABEL_DIVERGENCES:
        return (
            f"{field}: {missing:,} of {known + missing:,} texts have no label, and divergence: "
            f"{settings.divergence} reads one in every text: choose another divergence, such as forward_kl, "
            "or leave these texts out"
        )
    if missing and not known and not taught_without_labels(settings):
        return (
            f"{field} has no labels, and kd_ratio: 0 learns from nothing else: {_remedy(columns)}, or distil "
            "from a teacher (teacher, and a kd_ratio above 0), which needs no labels"
        )
    return None


def _remedy(columns: Sequence[str]) -> str:
    """How to give labels, with the column that looks like one."""
    if any(name in columns for name in COLUMNS):
        return "fill in the column label"
    found = near("label", columns)
    if found is None:
        return "add a column label, or name theirs with column_mapping: {label: ...}"
    return f"name their column with column_mapping: {{label: {found}}}"
