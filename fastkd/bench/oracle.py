"""Computes the right answer in float64, a few rows at a time, and how far another answer is from it.

The loss is computed over all tokens. For a gradient over logits, the first, the last and random rows are
compared; behind heads, the whole gradient is. The entries at the labels are compared separately, since the
cross-entropy's gradient there is a thousand times all others and would hide them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from fastkd.bench import plain
from fastkd.bench.cases import TEMPERATURE, Case, Problem
from fastkd.divergences import DIVERGENCES, Pair

# The gradient of |p - q| changes sign at p = q: if log p and log q are closer than this, rounding decides it.
TIE = 1e-5
# Elements of one block of logits: 128 MiB in float64, and the formulas keep a handful of such tensors.
BLOCK = 2**24
FIRST, LAST, RANDOM = 16, 16, 32


@dataclass
class Answer:
    """The loss and gradients of a problem.

    A gradient over logits has only the rows in ``rows``; ``ties`` marks those whose sign rounding decides.
    """

    value: Tensor
    grads: tuple[Tensor, ...]
    rows: Tensor | None = None
    ties: Tensor | None = None


@dataclass(frozen=True)
class Errors:
    """Relative errors of the value and of the gradients (the largest of all gradients' parts, by norm)."""

    value: float
    gradient: float | None

    def within(self, allowed: tuple[float, float]) -> bool:
        # Comparisons with NaN are false, so a NaN error is never within the tolerance.
        return self.value <= allowed[0] and (self.gradient is None or self.gradient <= allowed[1])


def answer(problem: Problem) -> Answer:
    """The loss over all tokens, and its gradients if the case has a backward."""
    return _answer_linear(problem) if problem.case.linear else _answer_dense(problem)


def loss_of(case: Case) -> plain.Formula:
    """The case's quantity as a function of logits, as users write it or by the divergence's own formula."""
    if plain.takes(case):
        return plain.loss_of(case)
    name = case.divergence
    return plain.loss_of(case, lambda s, t, labels: _ByFormula.apply(s, t, labels, name))


class _ByFormula(torch.autograd.Function):
    """A divergence and its gradient by ``Divergence.formula``, averaged over the rows."""

    @staticmethod
    def forward(ctx: Any, s: Tensor, t: Tensor, labels: Tensor, name: str) -> Tensor:
        log_p, log_q = torch.log_softmax(t, -1), torch.log_softmax(s, -1)
        found = DIVERGENCES[name].formula(_pair(name, log_p, log_q, labels))
        ctx.save_for_backward(found.by_student / len(s))
        return found.value.mean()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (by_student,) = ctx.saved_tensors
        return grad * by_student, None, None, None


def _pair(name: str, log_p: Tensor, log_q: Tensor, labels: Tensor) -> Pair:
    """Both distributions of each row, with the default parameters of the divergence."""
    alpha, beta = (
        DIVERGENCES[name].parameters[x].default if x in DIVERGENCES[name].parameters else 0.5
        for x in ("alpha", "beta")
    )
    at_label = torch.zeros_like(log_q, dtype=torch.bool).scatter_(-1, labels[:, None], True)
    return Pair(log_p, log_q, log_p - log_q, alpha, beta, at_label)


@cache
def _depends_on_sign(name: str) -> bool:
    """Whether the gradient jumps where p = q, as that of |p - q| does, so that rounding decides it there."""
    gradients = []
    for step in (TIE, -TIE):
        log_p = torch.log_softmax(torch.tensor([[step, 0.0, 0.0]], dtype=torch.float64), -1)
        log_q = torch.full_like(log_p, -math.log(3))
        pair = _pair(name, log_p, log_q, torch.tensor([2]))
        gradients.append(DIVERGENCES[name].formula(pair).by_student)
    return bool((gradients[0] - gradients[1]).abs().max() > 100 * TIE)


def _blocks(case: Case, device: torch.device) -> list[Tensor]:
    return list(torch.arange(case.tokens, device=device).split(max(1, BLOCK // case.vocab)))


def checked_rows(case: Case) -> Tensor:
    """The first, the last and random rows, sorted and without repetition."""
    tokens = case.tokens
    random = torch.randint(tokens, (RANDOM,), generator=torch.Generator().manual_seed(0))
    first, last = torch.arange(min(FIRST, tokens)), torch.arange(max(0, tokens - LAST), tokens)
    return torch.cat((first, last, random)).unique()


def _answer_dense(problem: Problem) -> Answer:
    case, loss = problem.case, loss_of(problem.case)
    student, teacher = problem.student[0].detach(), problem.teacher[0]
    value = torch.zeros((), dtype=torch.float64, device=student.device)
    for rows in _blocks(case, student.device):
        s, t = student[rows].double(), teacher[rows].double()
        value += loss(s, t, problem.labels[rows]) * (len(rows) / case.tokens)
    if not case.backward:
        return Answer(value, ())
    checked = checked_rows(case).to(student.device)
    grads, ties = [], []
    for rows in checked.split(max(1, BLOCK // case.vocab)):
        s = student[rows].double().requires_grad_()
        part = loss(s, teacher[rows].double(), problem.labels[rows]) * (len(rows) / case.tokens)
        grads.append(torch.autograd.grad(part, s)[0])
        if _depends_on_sign(case.divergence):
            ties.append(_ties(s.detach(), teacher[rows].double()))
    return Answer(value, (torch.cat(grads),), checked, torch.cat(ties) if ties else None)


def _ties(student: Tensor, teacher: Tensor) -> Tensor:
    log_q, log_p = (torch.log_softmax(x / TEMPERATURE, -1) for x in (student, teacher))
    return (log_p - log_q).abs() < TIE


def _answer_linear(problem: Problem) -> Answer:
    case, loss = problem.case, loss_of(problem.case)
    hidden, weight = (x.detach() for x in problem.student)
    wide, wide_teacher = weight.double().requires_grad_(case.backward), problem.teacher[1].double()
    value = torch.zeros((), dtype=torch.float64, device=hidden.device)
    grads = [torch.zeros_like(x, dtype=torch.float64) for x in (hidden, weight)] if case.backward else []
    for rows in _blocks(case, hidden.device):
        h = hidden[rows].double().requires_grad_(case.backward)
        student = h @ wide.T
        teacher = problem.teacher[0][rows].double() @ wide_teacher.T
        part = loss(student, teacher, problem.labels[rows]) * (len(rows) / case.tokens)
        value += part.detach()
        if case.backward:
            by_hidden, by_weight = torch.autograd.grad(part, (h, wide))
            grads[0][rows] = by_hidden
            grads[1] += by_weight
    return Answer(value, tuple(grads))


def errors(problem: Problem, value: Tensor, right: Answer) -> Errors:
    """How far ``value`` and the gradients now in ``problem`` are from the right ones."""
    off = float((value.double() - right.value).abs() / right.value.abs())
    if not right.grads:
        return Errors(off, None)
    worst = []
    for i, (x, exact) in enumerate(zip(problem.student, right.grads, strict=True)):
        assert x.grad is not None
        found = (x.grad if right.rows is None else x.grad[right.rows]).double()
        if right.ties is not None:
            found = torch.where(right.ties & found.isfinite(), exact, found)
        for part in _parts(problem, right, i):
            norm = float(exact[part].norm())
            if norm > 0:
                worst.append(float((found[part] - exact[part]).norm()) / norm)
    # max() would ignore a NaN that does not come first.
    return Errors(off, max(worst) if all(x == x for x in worst) else float("nan"))


def _parts(problem: Problem, right: Answer, which: int) -> list[Any]:
    """Masks that split gradient ``which`` into the entries that belong to labels and the rest."""
    case, labels, exact = problem.case, problem.labels, right.grads[which]
    by_hidden = case.linear and which == 0  # every entry depends on the label's logit
    if by_hidden or (case.kd_ratio == 1 and not DIVERGENCES[case.divergence].splits_label):
        return [...]
    if right.rows is not None:
        touched = torch.zeros_like(exact, dtype=torch.bool).scatter_(-1, labels[right.rows, None], True)
    else:
        touched = torch.zeros(case.vocab, dtype=torch.bool, device=exact.device).index_fill_(0, labels, True)
    return [touched, ~touched]


def tolerance(case: Case, ours: bool) -> tuple[float, float]:
    """The largest errors of value and gradient that rounding explains; an answer with larger ones is wrong.

    For a peer, larger errors mean that it computes another quantity. Peers that compute in bfloat16 were off
    by up to 0.14 (the value of a JSD) and 0.07 (gradients); a KL with the sides swapped, a missing T^2 or
    another weighting changes the gradient by 0.1 to 9. In float32 the tolerance leaves room for products in
    TF32.
    """
    rounded = case.dtype != "float32"
    if not ours:
        return (0.3, 0.1) if rounded else (1e-2, 1e-2)
    tvd = _depends_on_sign(case.divergence)  # a tie flips the sign of its entry, which moves its row a little
    if not rounded:
        return 1e-5, (1e-2 if case.linear else 1e-3) if tvd else (1e-4 if case.linear else 2e-5)
    # The gradient is rounded to 8 bits once; behind a head, the logits are too.
    return (5e-3, 0.1 if tvd else 0.04) if case.linear else (1e-4, 4e-3)
