"""Runs an adapter through the cases and makes a verdict of each."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from fastkd.conformance.adapter import Adapter, Call
from fastkd.conformance.cases import CASES, Case
from fastkd.conformance.inputs import Inputs
from fastkd.conformance.measures import Error, Mismatch


class Status(Enum):
    PASSES = "passes"
    WRONG = "wrong"
    REFUSES = "refuses"
    CANNOT = "cannot express"


@dataclass(frozen=True)
class Finding:
    """The outcome of one call: what was called, and the error or the message that decided."""

    call: str
    status: Status
    errors: tuple[Error, ...] = ()
    message: str = ""

    @property
    def error(self) -> Error | None:
        """The largest error, measured by its tolerance."""
        return max(self.errors, key=lambda error: error.size, default=None)

    @property
    def severity(self) -> tuple[int, float]:
        """The order of outcomes: errors by their size, above refusals, above what passes."""
        rank = (Status.PASSES, Status.REFUSES, Status.WRONG).index(self.status)
        return rank, math.inf if self.error is None else self.error.size

    @property
    def headline(self) -> str:
        """The largest wrong gradient, or else the wrong loss: ``gradient 12 %``; empty without either."""
        wrong = [e for e in self.errors if e.wrong]
        worst = max(wrong, key=lambda e: (e.what != "loss", e.size), default=None)
        return f"{worst.what} {amount(worst.relative)}" if worst else ""

    @property
    def text(self) -> str:
        """The outcome in a few words, such as ``loss 3 %, gradient 12 %``."""
        if self.status is Status.WRONG and self.errors:
            return ", ".join(f"{e.what} {amount(e.relative)}" for e in self.errors if e.wrong)
        return self.message


@dataclass(frozen=True)
class Verdict:
    """A case's outcome: that of its worst call. Without calls, ``message`` says why there are none."""

    case: Case
    status: Status
    findings: tuple[Finding, ...] = ()
    message: str = ""

    @property
    def worst(self) -> Finding | None:
        return max(self.findings, key=lambda finding: finding.severity, default=None)


@dataclass(frozen=True)
class Report:
    """All verdicts on an adapter, in the order of the cases."""

    adapter: Adapter
    verdicts: tuple[Verdict, ...]

    def count(self, status: Status) -> int:
        return sum(verdict.status is status for verdict in self.verdicts)


def run(adapter: Adapter, cases: Sequence[Case] = CASES, device: str = "cpu") -> Report:
    """Run an adapter through cases; nothing that its loss raises is passed on."""
    return Report(adapter, tuple(_verdict(adapter, case, device) for case in cases))


def amount(relative: float) -> str:
    """A relative error: a percentage with two digits, or a factor if it is large."""
    if not math.isfinite(relative):
        return "NaN" if math.isnan(relative) else "inf"
    if relative >= 10:
        return f"{relative:.0f}x" if relative < 1000 else f"{relative:.0e}x"
    percent = 100 * relative
    return f"{percent:.0f} %" if percent >= 10 else f"{percent:.2g} %"


def _verdict(adapter: Adapter, case: Case, device: str) -> Verdict:
    if (why := case.need(adapter)) is not None:
        return Verdict(case, Status.CANNOT, message=why)
    findings = tuple(_find(adapter, case, *call) for call in case.calls(adapter, Inputs(device)))
    if not findings:
        return Verdict(case, Status.CANNOT, message="none of its divergences has this")
    worst = max(findings, key=lambda finding: finding.severity)
    return Verdict(case, worst.status, findings)


def _find(adapter: Adapter, case: Case, name: str, call: Call) -> Finding:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            errors = case.measure(adapter, call)
        except Mismatch as mismatch:
            return Finding(name, Status.WRONG, message=str(mismatch))
        except Exception as error:  # a loss may raise anything
            said = " ".join(str(error).split())
            return Finding(name, Status.REFUSES, message=f"{type(error).__name__}: {said}")
    wrong = any(error.wrong for error in errors)
    return Finding(name, Status.WRONG if wrong else Status.PASSES, tuple(errors))
