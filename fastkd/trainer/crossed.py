r"""The losses between a student and a teacher whose tokenizers split a text differently.

Both read the same text, and :mod:`fastkd.corpora.spans` has cut it into spans that begin and end at the same
bytes on both sides. At the beginning of a span, both have read the same bytes.

``spans`` compares the probability that each side gives to a span (ALM: Minixhofer, Vulić and Ponti 2025,
"Universal Cross-Tokenizer Distillation via Approximate Likelihood Matching"). With the span's probability p
of the teacher and q of the student, each the product over its tokens, and the temperature T,

    L = T * D((p^(1/T), 1 - p^(1/T)), (q^(1/T), 1 - q^(1/T)))

for any divergence D. At T = 1 it is the divergence between "this span comes next" and "another text does",
which is at most that of the whole distributions. A long span is improbable on both sides, so that the
gradient at T = 1, which is (q - p) / (1 - q) of log q for the forward KL, is small wherever both are. The
factor T keeps its size as T grows: with a = -log p and b = -log q, L of the forward KL tends to

    b - a + a log(a / b)

(the KL divergence of two Poisson distributions of means a and b), whose gradient with respect to log q is
a / b - 1 however long the span is.

``hybrid`` compares distributions where a span begins (after GOLD of TRL, Patiño et al. 2025, and ULD, Boizard
et al. 2024); :class:`HybridLoss` says how.

Sums over spans are divided by the student's targets of the whole batch, as those over tokens are: by the
chain rule, the log-probability of a span is the sum of those of its tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastkd import kd_loss
from fastkd.corpora.shared_tokens import SharedTokens
from fastkd.corpora.spans import SPANS, TEACHER_LABELS, TEACHER_SPANS
from fastkd.corpora.tasks import IGNORE_INDEX, Batch, Task
from fastkd.trainer.models import HiddenLogits, detach, multiply_out, positions_of
from fastkd.trainer.objective import Sums, loss

# Log-probabilities of spans are kept between these, where 1 - p has digits and p is no zero.
_LEAST, _MOST = -1e4, -1e-6


@dataclass(frozen=True)
class SpanLoss:
    """The divergence between the probabilities of spans; see the top of this file.

    Attributes:
        divergence: the keywords ``divergence``, ``alpha`` and ``beta`` of :func:`fastkd.kd_loss`.
        temperature: T.
    """

    divergence: dict[str, Any]
    temperature: float

    def __call__(self, student: Tensor, teacher: Tensor, present: Tensor) -> Tensor:
        """The sum over the spans.

        Args:
            student, teacher: ``(n,)`` log-probabilities of spans.
            present: ``(n,)``, which of them there are.
        """
        labels = torch.where(present, 0, IGNORE_INDEX)
        columns = [_two_columns(side, self.temperature) for side in (student, teacher)]
        found: Tensor = kd_loss(columns[0], columns[1], labels, reduction="sum", **self.divergence)
        return self.temperature * found


def _two_columns(logprobs: Tensor, temperature: float) -> Tensor:
    """``(n, 2)`` log-probabilities of a span and of anything else, softened."""
    x = logprobs.clamp(_LEAST, _MOST) / temperature
    # log(1 - e^x); each form is right where the other one loses its digits.
    near = x > -math.log(2)
    small = torch.log(-torch.expm1(torch.where(near, x, -1.0)))
    large = torch.log1p(-torch.exp(torch.where(near, -1.0, x)))
    return torch.stack([x, torch.where(near, small, large)], -1)


@dataclass(frozen=True)
class HybridLoss:
    """The divergence between distributions where spans begin.

    Attributes:
        tokens: the classes of tokens that begin alike.
        divergence: the keywords ``divergence``, ``alpha`` and ``beta`` of :func:`fastkd.kd_loss`.
        temperature: T of both distributions.
    """

    tokens: SharedTokens
    divergence: dict[str, Any]
    temperature: float

    def __call__(self, student: Tensor, teacher: Tensor, one: Tensor | None = None) -> Tensor:
        """The sum over the spans.

        Args:
            student, teacher: ``(n, V)`` logits where the spans begin.
        """
        import os

        mode = os.environ.get("HYB", "classes")
        classes = [
            _by_class(side, numbers, self.tokens.count, self.temperature)
            for side, numbers in ((student, self.tokens.student), (teacher, self.tokens.teacher))
        ]
        each: Tensor = kd_loss(
            classes[0], classes[1], temperature=self.temperature, reduction="none", **self.divergence
        )
        if mode == "classes":
            return each.sum()
        apart = _sorted_distance(student / self.temperature, teacher / self.temperature)
        if mode == "gold":
            return torch.where(one, each, apart).sum()
        return torch.where(one, each, 0.0).sum()


def _by_class(logits: Tensor, numbers: list[int], count: int, temperature: float) -> Tensor:
    """``(n, count)`` logits of the classes: a class has the probability of all its tokens together."""
    places = torch.full((logits.shape[-1],), count, device=logits.device)  # padding belongs to no class
    known = torch.tensor(numbers, device=logits.device)
    places[: len(numbers)] = torch.where(known < 0, count, known)
    logits = logits.float() if logits.dtype != torch.float64 else logits
    most = logits.detach().amax(-1, keepdim=True)
    shares = torch.exp((logits - most) / temperature)
    totals = shares.new_zeros(len(logits), count + 1).index_add(-1, places, shares)[:, :count]
    least = torch.finfo(totals.dtype).tiny
    return temperature * totals.clamp(min=least).log() + most


def _sorted_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """``(n,)`` L1 distances of the sorted probabilities, the shorter list filled up with zeros."""
    sides = [F.softmax(side.float(), -1).sort(-1, descending=True).values for side in (student, teacher)]
    width = max(side.shape[-1] for side in sides)
    one, other = (F.pad(side, (0, width - side.shape[-1])) for side in sides)
    return (one - other).abs().sum(-1)


@dataclass(frozen=True)
class CrossedObjective:
    """The loss of a batch whose student and teacher have different tokenizers.

    Attributes:
        task: causal_lm or seq2seq.
        term: compares both sides.
        label_smoothing: of the student's cross-entropy with its own tokens.
    """

    task: Task
    term: SpanLoss | HybridLoss
    label_smoothing: float = 0.0

    def __call__(
        self,
        student: Tensor | HiddenLogits,
        teacher: Tensor | HiddenLogits | None,
        batch: Batch,
        kd_ratio: float,
        num_items: Any = None,
    ) -> tuple[Tensor, Sums]:
        """The loss, and the sums of ``loss``, ``ce``, ``kd``, ``teacher_ce`` (of the teacher's aligned
        tokens) and ``aligned`` (the number of the student's tokens that are aligned).

        Args:
            student, teacher: distributions at the positions of each side's own targets; the teacher's may be
                None if ``kd_ratio`` is 0.
            batch: has the spans, and the labels of both sides.
            kd_ratio: share of the divergence; the rest is cross-entropy.
            num_items: the student's targets in the whole batch; None if this batch is the whole.
        """
        targets = self.task.targets(batch["labels"])
        count = (targets != IGNORE_INDEX).sum()
        own = logprobs(student, targets)
        ce = smooth = -own.sum()
        if self.label_smoothing and kd_ratio < 1:
            options = {"kd_ratio": 0.0, "label_smoothing": self.label_smoothing, "reduction": "sum"}
            smooth = loss(student, None, targets, options)
        sums = {"tokens": count.float(), "ce": ce.detach().float()}
        whole = (1 - kd_ratio) * smooth if kd_ratio < 1 else own.sum() * 0.0
        if teacher is not None:
            kd, more = self._divergence(student, teacher, own, batch)
            whole = whole + kd_ratio * kd
            sums |= {"kd": kd.detach().float(), **more}
        sums["loss"] = whole.detach().float()
        items = count if num_items is None else num_items
        return whole / torch.as_tensor(items, device=whole.device).clamp(min=1), sums

    def _divergence(
        self, student: Tensor | HiddenLogits, teacher: Tensor | HiddenLogits, own: Tensor, batch: Batch
    ) -> tuple[Tensor, Sums]:
        spans, theirs = (self.task.targets(batch[name]) for name in (SPANS, TEACHER_SPANS))
        with torch.no_grad():
            given = logprobs(detach(teacher), self.task.targets(batch[TEACHER_LABELS]))
            aligned = theirs != IGNORE_INDEX
            sums = {
                "teacher_ce": -torch.where(aligned, given, 0.0).sum().float(),
                "aligned": (spans != IGNORE_INDEX).sum().float(),
            }
        most = spans.shape[1]
        counts, other = (per_span(torch.ones_like(x, dtype=torch.float32), x, most) for x in (spans, theirs))
        if isinstance(self.term, SpanLoss):
            found = self.term(per_span(own, spans, most), per_span(given, theirs, most), counts > 0)
            return found, sums
        here, there = _beginnings(spans), _beginnings(theirs)
        one = (counts == 1) & (other == 1)
        logits = multiply_out(positions_of(student, here))
        with torch.no_grad():
            known = multiply_out(positions_of(teacher, there))
        return self.term(logits, known, one[counts > 0]), sums


def logprobs(side: Tensor | HiddenLogits, targets: Tensor) -> Tensor:
    """The log-probability of each position's target; 0 without one."""
    options = {"kd_ratio": 0.0, "reduction": "none"}
    found: Tensor = -loss(side, None, targets, options)
    return found


def per_span(values: Tensor, spans: Tensor, most: int) -> Tensor:
    """``(rows * most,)`` sums of ``(rows, length)`` values over the positions of each span.

    Args:
        spans: ``(rows, length)`` number of each position's span in its row, below ``most``, or IGNORE_INDEX.
    """
    rows = len(spans)
    first = torch.arange(rows, device=spans.device)[:, None] * most
    places = torch.where(spans != IGNORE_INDEX, first + spans, rows * most)
    sums = values.new_zeros(rows * most + 1).index_add(0, places.flatten(), values.flatten())
    return sums[:-1]


def _beginnings(spans: Tensor) -> Tensor:
    """``(rows, length)``, whether a span begins at a position. Spans are numbered in their order."""
    before = F.pad(spans[:, :-1], (1, 0), value=IGNORE_INDEX)
    return (spans != IGNORE_INDEX) & (spans != before)
