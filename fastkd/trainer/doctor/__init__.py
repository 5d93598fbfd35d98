"""What would go wrong in a run, found before it: one small function per finding, in modules by theme."""

from __future__ import annotations

import copy

from fastkd.trainer.config import DistillationConfig
from fastkd.trainer.doctor import cache, labels, machine, quality, settings, vocabulary
from fastkd.trainer.doctor.findings import Case, Finding

__all__ = ["Finding", "examine", "examined"]

ORDER = ("error", "warning", "note")
# Weights last, so that nobody waits for them in vain.
THEMES = (settings, vocabulary, labels, cache, machine, quality)


def examine(args: DistillationConfig, fast: bool = False) -> list[Finding]:
    """All findings on a configuration, errors first.

    Configurations, tokenizers and at most some thousand rows are read; weights only to compare student and
    teacher on a few rows.

    Args:
        args: of ``fastkd distill``, or of ``fastkd train`` without a teacher.
        fast: read no weights, of a cache only its manifest, and estimate no memory.
    """
    return examined(args, fast)[0]


def examined(args: DistillationConfig, fast: bool = False) -> tuple[list[Finding], str]:
    """As :func:`examine`, and which rows were looked at, in words."""
    case = Case(copy.copy(args), fast)
    found = [finding for theme in THEMES for check in theme.CHECKS for finding in check(case)]
    whole = list(dict.fromkeys([*case.troubles, *found]))
    samples = [sample for sample in (case.train, case.held_out) if sample is not None]
    looked_at = ", ".join(f"{sample.looked_at} of {sample.field}" for sample in samples)
    return sorted(whole, key=lambda finding: ORDER.index(finding.severity)), looked_at
