"""A divergence as one object: its name, parameters, formula, and the properties that kernels depend on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Shards(Protocol):
    """The other processes' parts of a vocabulary, see :class:`fastkd.backends.shards.Shards`."""

    def sum(self, x: Tensor) -> Tensor: ...

    def max(self, x: Tensor) -> Tensor: ...


@dataclass
class Pair:
    """Two distributions per row, of shape ``(rows, classes)``.

    Args:
        log_p, log_q: teacher and student, normalised over the classes (of all shards).
        log_ratio: ``log_p - log_q``, computed from the difference of the logits, which has less rounding.
        alpha, beta: the divergence's parameters.
        hot: bool, true at the label's class, for the divergence that treats the label separately.
        shards: the other processes' classes; None if this process has all classes.
    """

    log_p: Tensor
    log_q: Tensor
    log_ratio: Tensor
    alpha: float
    beta: float
    hot: Tensor | None = None
    shards: Shards | None = None

    def total(self, x: Tensor) -> Tensor:
        """The sum over all classes, ``(rows, 1)``."""
        here = x.sum(-1, keepdim=True)
        return here if self.shards is None else self.shards.sum(here)

    def log_total(self, x: Tensor) -> Tensor:
        """The logarithm of the sum of ``exp(x)`` over all classes, ``(rows, 1)``."""
        if self.shards is None:
            return torch.logsumexp(x, -1, keepdim=True)
        # A shard may hold no class at all.
        edge = x.new_full((*x.shape[:-1], 1), -math.inf)
        top = self.shards.max(torch.cat([x, edge], -1).amax(-1, keepdim=True))
        top = torch.where(torch.isinf(top), 0.0, top)
        return top + torch.log(self.total(torch.exp(x - top)))


class Result(NamedTuple):
    """``D`` ``(rows, 1)`` and its gradients ``(rows, classes)`` with respect to ``s / T`` and ``t / T_t``."""

    value: Tensor
    by_student: Tensor
    by_teacher: Tensor


class Parameter(NamedTuple):
    """A number that shapes a divergence, with the closed range of its values."""

    default: float
    least: float = -math.inf
    most: float = math.inf


# The ops pass it for a parameter that the divergence does not have.
UNUSED = Parameter(0.5)

# Functions of (alpha, beta).
Powers = Callable[[float, float], tuple[tuple[float, float], ...]]
Condition = Callable[[float, float], bool]


def never(alpha: float, beta: float) -> bool:
    return False


def always(alpha: float, beta: float) -> bool:
    return True


def accept(alpha: float, beta: float) -> None:
    """The check of a divergence that accepts everything in its parameters' ranges."""


def no_streams(alpha: float, beta: float) -> tuple[tuple[float, float], ...]:
    return ()


@dataclass(frozen=True)
class Divergence:
    """A divergence ``D(p, q)`` of the student's distribution ``q`` from the teacher's ``p``.

    Attributes:
        name: what users call it.
        formula: its value and gradients in plain torch, in log space: no formula takes the logarithm of a sum
            of probabilities or divides by one that can underflow. Entries that are -inf on both sides have
            ``log_ratio`` 0 and add nothing.
        parameters: the parameters that it has, by name (``"alpha"`` or ``"beta"``).
        check: raises ValueError for parameters within their ranges that the divergence does not allow.
        limits: values of ``beta`` at which another divergence replaces it, with that one's name.
        streams: the sums that the kernels' first sweep collects for it. Each is given by the powers of the
            teacher's and of the student's exponentials by which it scales.
        cross: whether stream 0 is the sum of ``p**a q**b``; otherwise streams are linear in the log-ratio.
        sums: whether its kernels need a sweep between the first and the last.
        distant: whether rows that share little probability need one more sweep, whose sums are logarithms.
        splits_label: whether it treats the label separately, and so needs labels.
        infinite_outside: whether it is infinite if the teacher has probability where the student has none.
        over_vocabulary: whether a sparse teacher with ``tail="renormalize"`` is compared with the student's
            whole vocabulary. This needs a divergence that is finite where the teacher has no probability and
            depends there only on the student's total probability. All others compare only the entries.
    """

    name: str
    formula: Callable[[Pair], Result]
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    check: Callable[[float, float], None] = accept
    limits: Mapping[float, str] = field(default_factory=dict)
    streams: Powers = no_streams
    cross: bool = False
    sums: bool = False
    distant: bool = False
    splits_label: bool = False
    infinite_outside: Condition = never
    over_vocabulary: Condition = never

    def default(self, parameter: str) -> float:
        """The parameter's default value; 0.5, which nothing reads, if the divergence does not have it."""
        return self.parameters.get(parameter, UNUSED).default
