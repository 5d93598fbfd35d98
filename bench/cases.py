"""What is measured: the sizes, the tensors, and one forward and backward over them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

TEMPERATURE = 2.0
KD_RATIO = 0.5

# Every vocabulary gets as many tokens as make about this many logits: 512 rows of Qwen's head.
ELEMENTS = 512 * 151_936
VOCABULARIES = (8_192, 32_000, 128_256, 151_936, 262_144)
DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Case:
    """One problem: over logits, or (widths above 0) over hidden states and their heads."""

    vocab: int
    tokens: int
    dtype: str
    device: str = "cpu"
    student_width: int = 0
    teacher_width: int = 0

    @property
    def linear(self) -> bool:
        return self.student_width > 0

    @property
    def id(self) -> str:
        widths = f"-H{self.student_width}/{self.teacher_width}" if self.linear else ""
        return f"{self.dtype}-V{self.vocab}-N{self.tokens}{widths}"

    @property
    def logits_bytes(self) -> int:
        """Of one tensor of logits, the unit in which memory is stated."""
        return self.tokens * self.vocab * getattr(torch, self.dtype).itemsize


@dataclass
class Problem:
    """The tensors of a case. ``student`` and ``teacher`` are ``(logits,)`` or ``(hidden, weight)``."""

    case: Case
    student: tuple[Tensor, ...]
    teacher: tuple[Tensor, ...]
    labels: Tensor


Loss = Callable[[Problem], Tensor]


def make_problem(case: Case) -> Problem:
    """Random tensors, the same for the same case; the student's require grad."""
    generator = torch.Generator(case.device).manual_seed(0)
    dtype = getattr(torch, case.dtype)

    def normal(rows: int, columns: int, std: float) -> Tensor:
        x = torch.empty(rows, columns, device=case.device).normal_(0, std, generator=generator)
        return x.to(dtype)

    if case.linear:
        student: tuple[Tensor, ...] = (
            normal(case.tokens, case.student_width, 1.0),
            normal(case.vocab, case.student_width, 2 * case.student_width**-0.5),
        )
        teacher: tuple[Tensor, ...] = (
            normal(case.tokens, case.teacher_width, 1.0),
            normal(case.vocab, case.teacher_width, 2 * case.teacher_width**-0.5),
        )
    else:
        logits = normal(case.tokens, case.vocab, 2.0)
        student, teacher = (logits,), (logits + normal(case.tokens, case.vocab, 0.5),)
    labels = torch.randint(case.vocab, (case.tokens,), device=case.device, generator=generator)
    for x in student:
        x.requires_grad_()
    return Problem(case, student, teacher, labels)


def step(loss: Loss, problem: Problem) -> Tensor:
    """One forward and backward into fresh gradients, as in training after ``zero_grad``."""
    for x in problem.student:
        x.grad = None
    value = loss(problem)
    torch.autograd.backward(value)
    return value.detach()
