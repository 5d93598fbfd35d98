"""``kd_loss`` in its other forms, timed beside the plain one: divergences, teachers, vocabulary sizes."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

import fastkd
from fastkd.bench import floor, measure
from fastkd.bench.cases import KD_RATIO, MAIN, TEMPERATURE, Case, Problem, make_problem
from fastkd.bench.device import Device, time_calls
from fastkd.bench.suite import VOCAB
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

    def case(self, dtype: str, device: str, elements: int) -> Case:
        """The sizes of the problem, with about ``elements`` logits in each tensor."""
        return Case(self.vocab, max(CHECKED_ROWS, elements // self.vocab), dtype, device)

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

    def call(self, problem: Problem, teacher: Any) -> Callable[[], object]:
        """One call, forward and backward, into a new gradient or in place."""
        (leaf,) = problem.student
        if not self.inplace:

            def call() -> None:
                leaf.grad = None
                self.loss(problem, leaf, teacher).backward()

            return call

        logits = leaf.detach().clone()

        def call_in_place() -> None:
            # As a model returns them, these logits are no leaf, and the loss may overwrite them. (From the
            # second call on they hold a gradient, which takes as long to process as logits.)
            overwritten = logits.detach().requires_grad_()
            self.loss(problem, _AsOutput.apply(overwritten), teacher, inplace=True).backward()

        return call_in_place


VARIANTS = {
    variant.name: variant
    for variant in (
        *(Variant(name, {"divergence": name}) for name in DIVERGENCES),
        Variant(f"{MAIN}, gradient in place", inplace=True),
        Variant(f"{MAIN}, with metrics", {"return_metrics": True}),
        Variant(f"{MAIN}, T = 3", {"temperature": 3.0}),
        Variant(f"sparse teacher, K = {SPARSE}, bucket", sparse=SPARSE),
        *(Variant(f"{MAIN}, V = {vocab:,}", vocab=vocab) for vocab in (1_024, 8_192, 32_000, 262_144)),
    )
}


def measured(
    device: Device,
    variant: Variant,
    case: Case,
    seconds: float,
    allocator: str = measure.DEFAULT,
    timer: measure.Timer = time_calls,
) -> measure.Entry:
    """The entry of one variant: its times if its gradient is right, else its error alone."""
    entry = blank(variant, case, allocator)
    problem = make_problem(case, device.where)
    teacher = variant.teacher(problem)
    error = gradient_error(variant, problem, teacher)
    allowed = 1e-5 if case.dtype == "float32" else 4e-3
    entry["gradient_error"] = measure.finite(error)
    if not error <= allowed:  # a comparison with NaN is false
        return {**entry, "status": "wrong", "reason": f"the gradient is off by {error:.1e}"}
    call = variant.call(problem, teacher)
    before = floor.measured(device, [problem])
    times = timer(device, [call], seconds)
    after = floor.measured(device, [problem])
    nanoseconds = 1e9 * statistics.median(times) / (case.tokens * case.vocab)
    measure.with_times(entry, case, times, (before, after))
    return {**entry, "ns_per_element": nanoseconds}


def blank(variant: Variant, case: Case, allocator: str = measure.DEFAULT) -> measure.Entry:
    """The fields of an entry that are known before any measurement."""
    return {
        "variant": variant.name,
        "allocator": allocator,
        **{name: getattr(case, name) for name in ("dtype", "vocab", "tokens", "device")},
        "status": "ok",
    }


def gradient_error(variant: Variant, problem: Problem, teacher: Any) -> float:
    """The relative error of the first rows' gradient against the reference backend in float64."""
    grads = []
    for dtype, backend in ((None, None), (torch.float64, "reference")):
        student = problem.student[0].detach()[:CHECKED_ROWS].to(dtype or problem.student[0].dtype)
        given = _rows_of(teacher, CHECKED_ROWS)
        student.requires_grad_()
        variant.loss(problem, student, given, backend=backend).backward()
        assert student.grad is not None
        grads.append(student.grad.double())
    return float((grads[0] - grads[1]).norm() / grads[1].norm())


def _rows_of(teacher: Any, rows: int) -> Any:
    if isinstance(teacher, torch.Tensor):
        return teacher[:rows]
    return fastkd.SparseTeacher(teacher.indices[:rows], teacher.logprobs[:rows], teacher.tail)


class _AsOutput(torch.autograd.Function):
    """Returns its input's memory as the output of an operation, so that it is no leaf."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.detach()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> None:
        return None
