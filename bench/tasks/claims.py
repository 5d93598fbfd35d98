"""Checks the statements of a task against the scores of its runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.tasks.description import Claim
from bench.tasks.measured import Measured, Value


@dataclass(frozen=True)
class Checked:
    """A statement and the numbers that bear it out or refute it.

    Attributes:
        claim: the statement.
        own, other, goal: the scores of ``run``, ``against`` and ``towards``.
        advantage: in the metric's unit, or as a share; None if a run or a score is missing.
        needed: the smallest advantage that bears the statement out.
    """

    claim: Claim
    own: Value | None
    other: Value | None
    goal: Value | None
    advantage: float | None
    needed: float

    @property
    def holds(self) -> bool | None:
        """None if a score is missing, or if the spread is asked for and each side has one run."""
        if self.advantage is None:
            return None
        if self.claim.at_least is not None:
            return self.advantage >= self.needed
        known = max(value.count for value in (self.own, self.other) if value is not None) > 1
        return self.advantage > self.needed if known else None


def checked(claims: Sequence[Claim], runs: Sequence[Measured]) -> list[Checked]:
    """Each statement with its numbers, in the order given."""
    known = {one.run.name: one for one in runs}
    return [_checked(claim, known) for claim in claims]


def _checked(claim: Claim, known: dict[str, Measured]) -> Checked:
    own = known[claim.run].value(claim.metric)
    other = known[claim.against].value(claim.against_metric or claim.metric)
    goal = known[claim.towards].value(claim.towards_metric or claim.metric) if claim.towards else None
    advantage = None
    if own is not None and other is not None:
        advantage = other.mean - own.mean if claim.lower else own.mean - other.mean
        if claim.towards is not None:
            way = None if goal is None else (goal.mean - other.mean) * (-1 if claim.lower else 1)
            advantage = advantage / way if way is not None and way > 0 else None
    spreads = sum(value.spread or 0.0 for value in (own, other) if value is not None)
    return Checked(claim, own, other, goal, advantage, spreads if claim.at_least is None else claim.at_least)
