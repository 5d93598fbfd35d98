"""Finds what would go wrong in a run before it starts: one function per finding, one module per theme."""

from __future__ import annotations

import copy

from fastkd.runs.doctor import (
    cache,
    classes,
    conversations,
    labels,
    machine,
    output,
    quality,
    served,
    settings,
    vocabulary,
    weights,
)
from fastkd.runs.doctor.findings import Case, Finding
from fastkd.trainer import zero
from fastkd.trainer.config import DistillationConfig

__all__ = ["Finding", "examine", "examined"]

ORDER = ("error", "warning", "note")
# Checks that load weights run last: they are skipped if an earlier check could not read its input.
THEMES = (
    output,
    settings,
    weights,
    vocabulary,
    labels,
    classes,
    conversations,
    cache,
    served,
    machine,
    quality,
)


def examine(args: DistillationConfig, fast: bool = False) -> list[Finding]:
    """All findings on a configuration, errors first.

    The checks read configurations, tokenizers and a sample of the rows. They load weights only to examine the
    student's head and to compare student and teacher on a few rows.

    Args:
        args: the configuration of ``fastkd distill``, or of ``fastkd train`` without a teacher.
        fast: load no weights, read only the manifest of a cache, and estimate no memory.
    """
    return examined(args, fast)[0]


def examined(args: DistillationConfig, fast: bool = False) -> tuple[list[Finding], str]:
    """The findings of :func:`examine`, and a phrase that states how many rows were examined."""
    args = copy.copy(args)
    zero.leave(args)
    case = Case(args, fast)
    found = [finding for theme in THEMES for check in theme.CHECKS for finding in check(case)]
    # A model that cannot be read is met by several checks, in the same words.
    distinct = {(one.severity, one.found): one for one in reversed([*case.troubles, *found])}
    whole = list(distinct.values())[::-1]
    samples = [sample for sample in (case.train, case.held_out) if sample is not None]
    looked_at = ", ".join(f"{sample.looked_at} of {sample.field}" for sample in samples)
    return sorted(whole, key=lambda finding: ORDER.index(finding.severity)), looked_at
