"""Test the benchmark's oracle, and the tolerances by which a result is judged."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support import oracle as formulas
from support.benchmark import gradient_scaled
from torch import Tensor

from fastkd.bench import oracle, peers, plain
from fastkd.bench.cases import TEMPERATURE, Case, Problem, make_problem, step
from fastkd.bench.peers import ROUTES
from fastkd.divergences import DIVERGENCES
from fastkd.losses.checks import UNUSED


def test_a_wrong_part_is_not_hidden_by_the_labels_gradient() -> None:
    """A wrong gradient of the divergence is found, although the cross-entropy's entry at the label is by far
    the largest of its row."""
    case = Case(512, 16, "bfloat16")
    problem = make_problem(case)

    def kd_gradient_off(problem: Problem) -> Tensor:
        ce = torch.nn.functional.cross_entropy(problem.student[0].float(), problem.labels)
        both = plain.loss_of(case)(problem.student[0].float(), problem.teacher[0].float(), problem.labels)
        return gradient_scaled(both - 0.5 * ce, 1.015) + 0.5 * ce

    errors = oracle.errors(problem, step(kd_gradient_off, problem), oracle.answer(problem))
    assert errors.value < 1e-4
    assert not errors.within(oracle.tolerance(case, ours=True))
    whole = problem.student[0].grad.double() / torch.linalg.norm(problem.student[0].grad.double())
    step(ROUTES["fastkd native"].loss, problem)
    right = problem.student[0].grad.double() / torch.linalg.norm(problem.student[0].grad.double())
    assert float((whole - right).norm()) < 4e-3  # the error over all entries at once would pass


@pytest.mark.parametrize("by_hand", [True, False], ids=["plain", "formula"])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_the_oracle_is_that_of_the_tests(name: str, by_hand: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With and without a formula as users write it; then ``Divergence.formula`` takes its place."""
    if not by_hand:
        monkeypatch.delitem(plain.FORMULAS, name, raising=False)
    for ratio in (0.5, 1.0):
        case = Case(50, 5, "float64", divergence=name, kd_ratio=ratio)
        problem = make_problem(case)
        s, beta = problem.student[0], DIVERGENCES[name].parameters.get("beta")
        expected = formulas.kd_loss(
            *(s, problem.teacher[0], problem.labels),
            kd_ratio=ratio,
            divergence=name,
            beta=UNUSED.default if beta is None else beta.default,
            alpha=0.5,
            temperature=TEMPERATURE,
            t_squared=case.t_squared,
        )
        right = oracle.answer(problem)
        torch.testing.assert_close(right.value, expected.detach())
        (by_logits,) = torch.autograd.grad(expected, s)
        torch.testing.assert_close(right.grads[0], by_logits[right.rows])


def test_rounding_decides_gradients_that_depend_on_a_sign() -> None:
    assert {name for name in DIVERGENCES if oracle._depends_on_sign(name)} == {
        *("tvd", "log_acceptance", "kl_tvd")
    }


def test_differences_within_rounding_are_no_error() -> None:
    """Where p and q are nearly equal, rounding decides the sign of the gradient of |p - q|; both pass."""
    case = Case(3000, 4, "float32", divergence="tvd", kd_ratio=1)
    problem = make_problem(case)
    with torch.no_grad():
        rest = torch.logsumexp(problem.student[0][:, 1:] / TEMPERATURE, -1)
        other = torch.logsumexp(problem.teacher[0][:, 1:] / TEMPERATURE, -1)
        # Column 0 has the same odds on both sides, so the same probability up to rounding.
        problem.teacher[0][:, 0] = problem.student[0][:, 0] + TEMPERATURE * (other - rest)
    right = oracle.answer(problem)
    assert right.ties is not None and right.ties[:, 0].all() and right.ties.sum() < 8
    value = step(ROUTES["fastkd native"].loss, problem)
    assert problem.student[0].grad is not None
    problem.student[0].grad[:, 0] *= -1
    assert oracle.errors(problem, value, right).within(oracle.tolerance(case, ours=True))
    problem.student[0].grad[:, 1:100] *= -1
    assert not oracle.errors(problem, value, right).within(oracle.tolerance(case, ours=True))


@pytest.mark.parametrize("width", [0, 6])
def test_the_oracle_is_the_same_in_pieces(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make_problem(Case(40, 90, "float32", student_width=width, teacher_width=2 * width))
    whole = oracle.answer(problem)
    monkeypatch.setattr(oracle, "BLOCK", 7 * 40)
    pieces = oracle.answer(problem)
    torch.testing.assert_close(pieces.value, whole.value)
    for a, b in zip(pieces.grads, whole.grads, strict=True):
        torch.testing.assert_close(a, b)


def test_the_sample_has_both_ends_and_no_row_twice() -> None:
    rows = oracle.checked_rows(Case(10, 1000, "float32"))
    assert {0, 15, 984, 999} <= set(rows.tolist())
    assert len(rows.unique()) == len(rows) > 50
    assert oracle.checked_rows(Case(10, 3, "float32")).tolist() == [0, 1, 2]


CASES = [
    Case(2000, 16, dtype, student_width=w, teacher_width=2 * w, divergence=divergence, kd_ratio=ratio)
    for dtype in ("bfloat16", "float32")
    for w in (0, 32)
    for divergence, ratio in (("forward_kl", 0.5), ("forward_kl", 1.0), ("jsd", 1.0), ("tvd", 1.0))
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.op}-{c.dtype}-{c.divergence}-{c.kd_ratio:g}")
def test_the_tolerance_separates_rounding_from_another_quantity(case: Case) -> None:
    """Right results pass the tolerance; another divergence or another kd_ratio does not."""
    problem = make_problem(case)
    right, allowed = oracle.answer(problem), oracle.tolerance(case, ours=False)

    def errors(loss: Callable[[Problem], Tensor]) -> oracle.Errors:
        return oracle.errors(problem, step(loss, problem), right)

    assert errors(peers.eager).within(allowed)
    ours = errors(ROUTES["fastkd native"].loss)
    assert ours.within(oracle.tolerance(case, ours=True))

    def other(**changes: Any) -> oracle.Errors:
        problem.case = dataclasses.replace(case, **changes)
        value = step(ROUTES["fastkd reference"].loss, problem)
        problem.case = case
        return oracle.errors(problem, value, right)

    assert not other(divergence="reverse_kl").within(allowed)
    if case.kd_ratio < 1:
        assert not other(kd_ratio=0.4).within(allowed)
