r"""Losses between the distributions of two vocabularies where a span begins.

Both sides have read the same bytes there. With the student's distribution q and the teacher's p over the
tokens of their tokenizers, softened by the temperature T, and a divergence D:

``hybrid`` adds up the probabilities of classes of tokens that begin alike, which are the same events on both
sides (:func:`fastkd.corpora.shared_tokens.shared_tokens`), and compares those:

    L = T^2 D(p_C, q_C)

``gold`` is the hybrid loss of GOLD (Patiño et al. 2025, ``GOLDTrainer`` of TRL), which compares tokens that
only one side has by ULD's distance R of sorted probabilities (:mod:`fastkd.trainer.sorted_distance`). With
the tokens S that both sides have (the same bytes), the tokens U of either side alone, and |p_S| the sum of p
over S,

    L = T^2 D(p_S / |p_S|, q_S / |q_S|) + T R(p_U, q_U)    where the span is one token on both sides
    L = T R(p, q)                                          elsewhere

T^2 is that of :func:`fastkd.kd_loss`. It keeps the size of the divergence's gradient as T grows; R needs T.

The shared tokens are compared by their probabilities *given that one of them comes next*. GOLD's code (TRL
at f2cd577, ``ULDLoss``) instead sums the terms of the generalised JSD over S without dividing by |p_S| and
|q_S|. These are no distributions: the sum of the forward KL's terms is negative where |q_S| is much the
larger one, and is least where the student's own tokens have no probability, whatever the teacher gives to
its own. Divided, D is never negative. How much probability lies outside S still counts, because R(p_U, q_U)
is at least the difference between |p_U| and |q_U|. So L at such a span is 0 exactly where p_S = q_S and the
sorted probabilities of U are the same.

GOLD's code also differs in the following:

- It weights D by the share of the teacher's tokens that are in S, and R by the rest, or both by settings.
  Here both weigh 1.
- It leaves out R(p_U, q_U) where one side has no tokens of its own. Here the missing ones are zeros.
- For a span of several tokens it multiplies the first distribution by the probabilities of the tokens after
  the first, and compares the products by S and U too. Here R compares the distributions themselves.
- By default (``uld_token_merge_strategy: observed``) it reads every distribution one position later than the
  token that it compares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastkd import kd_loss
from fastkd.corpora.tasks import IGNORE_INDEX
from fastkd.trainer.sorted_distance import sorted_distance


@dataclass(frozen=True)
class HybridLoss:
    """The divergence between distributions where spans begin; see the top of this file.

    Attributes:
        student, teacher: ``(tokens,)`` class of each token of either side, as
            :func:`fastkd.corpora.shared_tokens.shared_tokens` has them.
        count: number of classes.
        divergence: the keywords ``divergence``, ``alpha`` and ``beta`` of :func:`fastkd.kd_loss`.
        temperature: T of both distributions.
    """

    student: Tensor
    teacher: Tensor
    count: int
    divergence: dict[str, Any]
    temperature: float

    def __call__(self, student: Tensor, teacher: Tensor, present: Tensor) -> Tensor:
        """The sum over the spans.

        Args:
            student, teacher: ``(n, V)`` logits where the spans begin.
            present: ``(n,)``, which of them there are.
        """
        sides = (student, self.student), (teacher, self.teacher)
        own, given = (by_class(side, classes, self.count, self.temperature) for side, classes in sides)
        return _divergence(own, given, present, self.divergence, self.temperature)


@dataclass(frozen=True)
class Tokens:
    """The tokens of one side, of which the other side has some.

    Attributes:
        shared: ``(s,)`` columns of the tokens that both sides have.
        classes: ``(s,)``, the class of each of them: tokens of the same bytes have the same one.
        others: ``(u,)`` columns of the tokens that this side alone has.
    """

    shared: Tensor
    classes: Tensor
    others: Tensor

    @classmethod
    def of(cls, classes: Sequence[int]) -> Tokens:
        """The tokens of a side.

        Args:
            classes: of each token; -1 for one that the other side lacks.
        """
        shared = [column for column, number in enumerate(classes) if number >= 0]
        others = [column for column, number in enumerate(classes) if number < 0]
        numbers = [classes[column] for column in shared]
        made = (torch.tensor(columns, dtype=torch.int64) for columns in (shared, numbers, others))
        return cls(*made)

    def to(self, device: torch.device) -> Tokens:
        return Tokens(self.shared.to(device), self.classes.to(device), self.others.to(device))

    def without_padding(self, logits: Tensor) -> Tensor:
        """``(n, tokens)``: the columns beyond them stand for no token."""
        return logits[:, : len(self.shared) + len(self.others)]


@dataclass(frozen=True)
class GoldLoss:
    """The divergence over shared tokens, and the distance of the others' sorted probabilities; see the top of
    this file.

    Attributes:
        student, teacher: the tokens of either side.
        count: number of classes of shared tokens.
        divergence: the keywords ``divergence``, ``alpha`` and ``beta`` of :func:`fastkd.kd_loss`.
        temperature: T of both distributions.
    """

    student: Tokens
    teacher: Tokens
    count: int
    divergence: dict[str, Any]
    temperature: float

    def of_single_tokens(self, student: Tensor, teacher: Tensor, present: Tensor) -> Tensor:
        """The sum over spans that are one token on both sides.

        Args:
            student, teacher: ``(n, V)`` logits where the spans begin.
            present: ``(n,)``, which of them there are.
        """
        own, given = self.student.to(student.device), self.teacher.to(teacher.device)
        total = self._sorted(student, teacher, present, own.others, given.others)
        if not self.count:
            return total
        columns = [
            by_class(side.index_select(-1, tokens.shared), tokens.classes, self.count, self.temperature)
            for side, tokens in ((student, own), (teacher, given))
        ]
        return total + _divergence(columns[0], columns[1], present, self.divergence, self.temperature)

    def of_others(self, student: Tensor, teacher: Tensor, present: Tensor) -> Tensor:
        """The sum over spans that are several tokens on one side or both; arguments as above."""
        return self._sorted(student, teacher, present)

    def _sorted(self, student: Tensor, teacher: Tensor, present: Tensor, *columns: Tensor) -> Tensor:
        sides = self.student.without_padding(student), self.teacher.without_padding(teacher)
        apart = sorted_distance(*sides, self.temperature, *columns)
        return self.temperature * torch.where(present, apart, 0.0).sum()


def _divergence(
    student: Tensor, teacher: Tensor, present: Tensor, divergence: dict[str, Any], temperature: float
) -> Tensor:
    """The sum over the rows that are present, with the factor T^2."""
    labels = torch.where(present, 0, IGNORE_INDEX)
    found: Tensor = kd_loss(student, teacher, labels, temperature=temperature, reduction="sum", **divergence)
    return found


def by_class(logits: Tensor, classes: Tensor, count: int, temperature: float) -> Tensor:
    """``(n, count)`` logits of the classes: a class has the probability of all its tokens together.

    Args:
        logits: ``(n, V)``.
        classes: of the first columns; -1 for none. Columns beyond them are padding, which has none either.
    """
    places = torch.full((logits.shape[-1],), count, device=logits.device)
    known = classes.to(logits.device)
    places[: len(known)] = torch.where(known < 0, count, known)
    # Tokens come first, so that a whole row of memory is added at a time.
    given = (logits if logits.dtype == torch.float64 else logits.float()).t().contiguous()
    most = given.detach().amax(0)
    shares = torch.exp((given - most) / temperature)
    totals = shares.new_zeros(count + 1, len(logits)).index_add(0, places, shares)[:count]
    return (temperature * totals.clamp(min=torch.finfo(totals.dtype).tiny).log() + most).t()
