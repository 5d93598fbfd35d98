"""The right answer, in float64 and a few rows at a time, and how far another is from it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.cases import Case, Problem
from bench.peers import plain

ROWS_AT_A_TIME = 32
DENSE_GRADIENT_ROWS = 64


@dataclass
class Answer:
    """The loss and gradients of a problem; of dense gradients only the rows in ``rows``."""

    value: Tensor
    grads: tuple[Tensor, ...]
    rows: Tensor | None


def _blocks(case: Case) -> list[Tensor]:
    rows = range(case.tokens)
    starts = rows[::ROWS_AT_A_TIME]
    return [torch.tensor(rows[i : i + ROWS_AT_A_TIME], device=case.device) for i in starts]


def answer(problem: Problem) -> Answer:
    """Loss over all tokens, and its gradients (for logits: on evenly spaced rows, which is proof enough)."""
    case = problem.case
    value = torch.zeros((), dtype=torch.float64, device=case.device)
    if case.linear:
        grads = tuple(torch.zeros_like(x, dtype=torch.float64) for x in problem.student)
        for rows in _blocks(case):
            parts = [problem.student[0][rows], problem.student[1]]
            hidden, weight = (x.detach().double().requires_grad_() for x in parts)
            teacher = problem.teacher[0][rows].double() @ problem.teacher[1].double().T
            loss = plain(hidden @ weight.T, teacher, problem.labels[rows]) * (len(rows) / case.tokens)
            grad_hidden, grad_weight = torch.autograd.grad(loss, (hidden, weight))
            value += loss.detach()
            grads[0][rows] = grad_hidden
            grads[1].add_(grad_weight)
        return Answer(value, grads, None)
    for rows in _blocks(case):
        s, t = problem.student[0].detach()[rows].double(), problem.teacher[0][rows].double()
        value += plain(s, t, problem.labels[rows]) * (len(rows) / case.tokens)
    rows = torch.arange(0, case.tokens, max(1, case.tokens // DENSE_GRADIENT_ROWS), device=case.device)
    s = problem.student[0].detach()[rows].double().requires_grad_()
    loss = plain(s, problem.teacher[0][rows].double(), problem.labels[rows]) * (len(rows) / case.tokens)
    return Answer(value, torch.autograd.grad(loss, (s,)), rows)


def errors(problem: Problem, value: Tensor, right: Answer) -> tuple[float, float]:
    """Relative errors of ``value`` and of the gradients now in ``problem`` (the worst of them, by norm)."""
    worst = 0.0
    for x, right_grad in zip(problem.student, right.grads, strict=True):
        assert x.grad is not None
        grad = x.grad if right.rows is None else x.grad[right.rows]
        worst = max(worst, float((grad.double() - right_grad).norm() / right_grad.norm()))
    return float((value.double() - right.value).abs() / right.value.abs()), worst


def tolerance(case: Case) -> tuple[float, float]:
    """The errors of value and gradient that rounding explains; more is a wrong answer."""
    if case.dtype == "float32":
        return 1e-5, 1e-4 if case.linear else 1e-5
    # One rounding of the gradient to 8 bits; behind a head, also of the logits and of the products.
    return (5e-3, 2e-2) if case.linear else (1e-4, 4e-3)
