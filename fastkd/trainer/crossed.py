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

``hybrid`` and ``gold`` compare distributions where a span begins;
:mod:`fastkd.trainer.crossed_distributions` says how.

Sums over spans are divided by the student's targets of the whole batch, as those over tokens are: by the
chain rule, the log-probability of a span is the sum of those of its tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastkd import kd_loss
from fastkd.corpora.spans import COUNT, SINGLE, SPANS, SPLIT, TEACHER_LABELS, TEACHER_SPANS
from fastkd.corpora.tasks import IGNORE_INDEX, Batch, Task
from fastkd.trainer.crossed_distributions import GoldLoss, HybridLoss
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
class CrossedObjective:
    """The loss of a batch whose student and teacher have different tokenizers.

    Attributes:
        task: causal_lm or seq2seq.
        term: compares both sides.
        label_smoothing: of the student's cross-entropy with its own tokens.
    """

    task: Task
    term: SpanLoss | HybridLoss | GoldLoss
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
        whole = (1 - kd_ratio) * smooth
        if teacher is not None:
            kd, more = self._divergence(student, teacher, own, batch, targets)
            whole = whole + kd_ratio * kd
            sums |= {"kd": kd.detach().float(), **more}
        sums["loss"] = whole.detach().float()
        items = count if num_items is None else num_items
        return whole / torch.as_tensor(items, device=whole.device).clamp(min=1), sums

    def _divergence(
        self,
        student: Tensor | HiddenLogits,
        teacher: Tensor | HiddenLogits,
        own: Tensor,
        batch: Batch,
        targets: Tensor,
    ) -> tuple[Tensor, Sums]:
        most = batch[COUNT]
        every = slots(self.task.targets(batch[SPANS]), most)
        every_theirs = slots(self.task.targets(batch[TEACHER_SPANS]), most)
        # Spans whose labels the trainer has masked count on neither side.
        spans = every.where(targets != IGNORE_INDEX, -1)
        sizes = sizes_of(spans, most)
        present = sizes > 0
        theirs = every_theirs.where((every_theirs >= 0) & present[every_theirs.clamp(min=0)], -1)
        with torch.no_grad():
            given = logprobs(detach(teacher), self.task.targets(batch[TEACHER_LABELS]))
            sums = {
                "teacher_ce": -torch.where(theirs >= 0, given, 0.0).sum().float(),
                "aligned": sizes.sum().float(),
            }
        if isinstance(self.term, SpanLoss):
            return self.term(per_slot(own, spans, most), per_slot(given, theirs, most), present), sums
        begin, begin_theirs = beginnings(spans, most), beginnings(theirs, most)

        def logits(chosen: Tensor | slice) -> tuple[Tensor, Tensor]:
            """Both sides' logits where some of the spans begin."""
            with torch.no_grad():
                known = multiply_out(positions_of(teacher, begin_theirs[chosen]))
            return multiply_out(positions_of(student, begin[chosen])), known

        if isinstance(self.term, HybridLoss):
            return self.term(*logits(slice(None)), present), sums
        single = (sizes_of(every, most) == 1) & (sizes_of(every_theirs, most) == 1)
        kd = own.new_zeros(())
        for wanted, count, term in (
            (present & single, batch[SINGLE], self.term.of_single_tokens),
            (present & ~single, batch[SPLIT], self.term.of_others),
        ):
            if count:  # only the spans of this kind have their logits multiplied out and sorted
                chosen = first(wanted, count)
                kd = kd + term(*logits(chosen), wanted[chosen])
        return kd, sums


def logprobs(side: Tensor | HiddenLogits, targets: Tensor) -> Tensor:
    """The log-probability of each position's target; 0 without one."""
    options = {"kd_ratio": 0.0, "reduction": "none"}
    found: Tensor = -loss(side, None, targets, options)
    return found


def slots(spans: Tensor, most: int) -> Tensor:
    """``(rows, length)``, the number of each position's span in the batch, which has ``most`` numbers for
    each row; -1 without one.

    Args:
        spans: ``(rows, length)``, the number of each position's span in its row, or IGNORE_INDEX.
    """
    first = torch.arange(len(spans), device=spans.device)[:, None] * most
    return torch.where(spans != IGNORE_INDEX, first + spans, -1)


def per_slot(values: Tensor, spans: Tensor, most: int) -> Tensor:
    """``(rows * most,)`` sums of ``(rows, length)`` values over the positions of each span."""
    total = len(spans) * most
    places = torch.where(spans >= 0, spans, total)
    return values.new_zeros(total + 1).index_add(0, places.flatten(), values.flatten())[:-1]


def sizes_of(spans: Tensor, most: int) -> Tensor:
    """``(rows * most,)``, the number of tokens of each span."""
    return per_slot(torch.ones_like(spans), spans, most)


def beginnings(spans: Tensor, most: int) -> Tensor:
    """``(rows * most,)``, the position in the flattened batch at which each span begins; any for none."""
    total = len(spans) * most
    places = torch.where(spans >= 0, spans, total).flatten()
    found = torch.full((total + 1,), spans.numel() - 1, device=spans.device)
    order = torch.arange(spans.numel(), device=spans.device)
    return found.scatter_reduce(0, places, order, "amin")[:-1]


def first(wanted: Tensor, count: int) -> Tensor:
    """``(count,)`` numbers of the spans that are wanted, which are at most ``count``, and of some others.

    The device need not be waited for, as it would be to learn how many there are.
    """
    return wanted.int().argsort(descending=True, stable=True)[:count]
