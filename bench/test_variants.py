"""Variants of ``fastkd.kd_loss``, each beside the plain one: divergences, teachers, vocabulary sizes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

import fastkd
from bench.conftest import time_call
from bench.sizes import DTYPES, VOCAB
from fastkd.bench import device as devices, floor
from fastkd.bench.cases import TEMPERATURE, Case, Problem, make_problem
from fastkd.bench.plan import KD_RATIO
from fastkd.divergences import DIVERGENCES

# A few rows suffice to prove that the variant computes the right function.
CHECKED_ROWS = 8
SPARSE = 64


@dataclass(frozen=True)
class Variant:
    """Options of ``kd_loss`` in addition to those of every case, and the shape of its problem."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    vocab: int = VOCAB
    sparse: int = 0
    inplace: bool = False

    def loss(self, problem: Problem, student: torch.Tensor, teacher: Any, **more: Any) -> torch.Tensor:
        temperature = 1.0 if self.sparse else TEMPERATURE  # the classes of a bucket are formed at 1
        options = {"kd_ratio": KD_RATIO, "temperature": temperature, **self.options, **more}
        value = fastkd.kd_loss(student, teacher, problem.labels[: student.shape[0]], **options)
        return value[0] if isinstance(value, tuple) else value

    def teacher(self, problem: Problem) -> Any:
        logits = problem.teacher[0]
        if not self.sparse:
            return logits
        logprobs, indices = torch.log_softmax(logits, -1).topk(self.sparse)
        return fastkd.SparseTeacher(indices, logprobs, "bucket")


VARIANTS = [
    *(Variant(name, {"divergence": name}) for name in DIVERGENCES),
    Variant("forward_kl, gradient in place", inplace=True),
    Variant("forward_kl, with metrics", {"return_metrics": True}),
    Variant("forward_kl, T = 3", {"temperature": 3.0}),
    Variant(f"sparse teacher, K = {SPARSE}, bucket", sparse=SPARSE),
    *(Variant(f"forward_kl, V = {vocab:,}", vocab=vocab) for vocab in (1_024, 8_192, 32_000, 262_144)),
]


def rows_of(teacher: Any, rows: int) -> Any:
    if isinstance(teacher, torch.Tensor):
        return teacher[:rows]
    return fastkd.SparseTeacher(teacher.indices[:rows], teacher.logprobs[:rows], teacher.tail)


def check(variant: Variant, problem: Problem, teacher: Any) -> float:
    """The largest relative error of the gradient's rows against the float64 reference."""
    grads = []
    for dtype, backend in ((None, None), (torch.float64, "reference")):
        student = problem.student[0].detach()[:CHECKED_ROWS].to(dtype or problem.student[0].dtype)
        given = rows_of(teacher, CHECKED_ROWS)
        student.requires_grad_()
        variant.loss(problem, student, given, backend=backend).backward()
        assert student.grad is not None
        grads.append(student.grad.double())
    return float((grads[0] - grads[1]).norm() / grads[1].norm())


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
@pytest.mark.parametrize("dtype", DTYPES)
def test_variant(variant: Variant, dtype: str, benchmark: Any, request: pytest.FixtureRequest) -> None:
    config = request.config
    tokens = max(CHECKED_ROWS, config.getoption("--elements") // variant.vocab)
    case = Case(variant.vocab, tokens, dtype, config.getoption("--device"))
    problem = make_problem(case)
    teacher, leaf = variant.teacher(problem), problem.student[0]
    error = check(variant, problem, teacher)
    assert error <= (1e-5 if dtype == "float32" else 4e-3), (
        f"the gradient is off by {error:.1e}: no speed is stated"
    )

    logits = leaf.detach().clone() if variant.inplace else leaf

    def call() -> None:
        leaf.grad = None
        if not variant.inplace:
            variant.loss(problem, leaf, teacher).backward()
            return
        # As a model returns them, these logits are no leaf, and the loss may overwrite them. (From the second
        # call on they hold a gradient, which takes as long to process as logits.)
        held = logits.detach().requires_grad_()
        variant.loss(problem, _AsOutput.apply(held), teacher, inplace=True).backward()

    device = devices.of(case.device)
    before = floor.measured(device, [problem]).seconds
    calls = time_call(benchmark, call, case.device)
    benchmark.extra_info.update(
        variant=variant.name,
        dtype=dtype,
        calls_per_round=calls,
        elements=tokens * variant.vocab,
        floor_seconds=[before, floor.measured(device, [problem]).seconds],
        gradient_error=error,
    )


class _AsOutput(torch.autograd.Function):
    """Returns its input's memory as the output of an operation, so that it is no leaf."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.detach()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> None:
        return None
