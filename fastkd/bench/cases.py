"""What is measured: the sizes, the quantity, the tensors, and one call over them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

TEMPERATURE = 2.0
# The teacher's logits are the student's times SHARPER plus noise: as sure of itself as teachers are, and so
# far off that a loss with the sides swapped or the T^2 forgotten differs by more than any rounding.
SHARPER, NOISE = 1.5, 1.0


@dataclass(frozen=True)
class Case:
    """One problem: over logits, or (widths above 0) over hidden states and their heads.

    The quantity is ``kd_ratio * T^2 * D + (1 - kd_ratio) * CE`` where ``kd_ratio`` is below 1, and ``D``
    alone, without the ``T^2``, where it is 1: that is what those peers compute that know no cross-entropy.
    The mean over the tokens; T = 2, and 1 for the cross-entropy.
    """

    vocab: int
    tokens: int
    dtype: str
    device: str = "cpu"
    student_width: int = 0
    teacher_width: int = 0
    divergence: str = "forward_kl"
    kd_ratio: float = 0.5
    backward: bool = True

    @property
    def linear(self) -> bool:
        return self.student_width > 0

    @property
    def op(self) -> str:
        return "linear_kd_loss" if self.linear else "kd_loss"

    @property
    def id(self) -> str:
        widths = f"-H{self.student_width}/{self.teacher_width}" if self.linear else ""
        return f"{self.dtype}-V{self.vocab}-N{self.tokens}{widths}"

    @property
    def t_squared(self) -> bool:
        return self.kd_ratio < 1

    @property
    def quantity(self) -> str:
        """The formula in a few words."""
        if self.kd_ratio == 0:
            return "cross-entropy"
        if self.kd_ratio == 1:
            return f"{self.divergence} (T = {TEMPERATURE:g}) alone"
        return (
            f"{self.kd_ratio:g} {self.divergence} (T = {TEMPERATURE:g}) + {1 - self.kd_ratio:g} cross-entropy"
        )

    @property
    def calls(self) -> str:
        return "forward + backward" if self.backward else "forward only"

    @property
    def logits_bytes(self) -> int:
        """Of one tensor of logits: N V b."""
        return self.tokens * self.vocab * self.itemsize

    @property
    def itemsize(self) -> int:
        return int(getattr(torch, self.dtype).itemsize)

    @property
    def input_bytes(self) -> int:
        """Of the tensors of both sides."""
        if not self.linear:
            return 2 * self.logits_bytes
        return (self.tokens + self.vocab) * (self.student_width + self.teacher_width) * self.itemsize

    @property
    def gradient_bytes(self) -> int:
        return self.student_bytes if self.backward else 0

    @property
    def student_bytes(self) -> int:
        if not self.linear:
            return self.logits_bytes
        return (self.tokens + self.vocab) * self.student_width * self.itemsize

    @property
    def least_bytes(self) -> int:
        """What a loss over logits must move: each side read once, and one gradient written."""
        return (3 if self.backward else 2) * self.logits_bytes


@dataclass
class Problem:
    """The tensors of a case. ``student`` and ``teacher`` are ``(logits,)`` or ``(hidden, weight)``."""

    case: Case
    student: tuple[Tensor, ...]
    teacher: tuple[Tensor, ...]
    labels: Tensor


Loss = Callable[[Problem], Tensor]


def make_problem(case: Case, device: torch.device | str | None = None, seed: int = 0) -> Problem:
    """Random tensors, the same for the same case and seed; the student's require grad where it is wanted."""
    device = torch.device(device or case.device)
    generator = torch.Generator(device).manual_seed(seed)
    dtype = getattr(torch, case.dtype)

    def normal(rows: int, columns: int, std: float) -> Tensor:
        return torch.empty(rows, columns, device=device, dtype=dtype).normal_(0, std, generator=generator)

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
        noise = normal(case.tokens, case.vocab, NOISE)
        student, teacher = (logits,), (noise.add_(logits, alpha=SHARPER),)
    labels = torch.randint(case.vocab, (case.tokens,), device=device, generator=generator)
    for x in student:
        x.requires_grad_(case.backward)
    return Problem(case, student, teacher, labels)


def step(loss: Loss, problem: Problem) -> Tensor:
    """One call: forward, and backward into fresh gradients as in training after ``zero_grad``."""
    for x in problem.student:
        x.grad = None
    if not problem.case.backward:
        with torch.no_grad():
            return loss(problem)
    value = loss(problem)
    torch.autograd.backward(value)
    return value.detach()
