"""Finds what would go wrong in a run before it starts: one function per finding, one module per theme."""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter

from fastkd.runs.doctor import (
    cache,
    classes,
    conversations,
    labels,
    machine,
    output,
    quality,
    sampler,
    served,
    settings,
    teacher_prompts,
    vocabulary,
    weights,
)
from fastkd.runs.doctor.findings import Case, Finding
from fastkd.trainer import zero
from fastkd.trainer.config import DistillationConfig
from fastkd.trainer.loading import settings_of_each

__all__ = ["Finding", "examine", "examined"]

ORDER = ("error", "warning", "note")
# Checks that load weights run last: they are skipped if an earlier check could not read its input.
THEMES = (
    output,
    settings,
    weights,
    vocabulary,
    labels,
    teacher_prompts,
    classes,
    conversations,
    cache,
    sampler,
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
    if isinstance(args.teachers, dict):
        return _of_each_teacher(args, fast)
    case = Case(args, fast)
    found = [finding for theme in THEMES for check in theme.CHECKS for finding in check(case)]
    # A model that cannot be read is met by several checks, in the same words.
    distinct = {(one.severity, one.found): one for one in reversed([*case.troubles, *found])}
    whole = list(distinct.values())[::-1]
    samples = [sample for sample in (case.train, case.held_out) if sample is not None]
    looked_at = ", ".join(f"{sample.looked_at} of {sample.field}" for sample in samples)
    return sorted(whole, key=lambda finding: ORDER.index(finding.severity)), looked_at


def _of_each_teacher(args: DistillationConfig, fast: bool) -> tuple[list[Finding], str]:
    """The findings with each of several teachers; what all of them share is said once."""
    found: dict[str, list[Finding]] = {}
    looked_at = ""
    for name, one in settings_of_each(args):
        one.routes = args.routes  # which the rows are read with
        found[name], looked_at = examined(one, fast)
    counts = Counter((finding.severity, finding.found) for part in found.values() for finding in part)
    whole: dict[tuple[str, str], Finding] = {}
    for name, part in found.items():
        for finding in part:
            shared = counts[finding.severity, finding.found] == len(found)
            text = finding.found if shared else f"teacher {name}: {finding.found}"
            whole.setdefault((finding.severity, text), dataclasses.replace(finding, found=text))
    return sorted(whole.values(), key=lambda finding: ORDER.index(finding.severity)), looked_at
