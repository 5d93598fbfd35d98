"""Defines a case: its sizes, its quantity, its tensors, and one call with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

TEMPERATURE = 2.0
# The main quantity is this divergence, mixed with the cross-entropy by this ratio.
MAIN, KD_RATIO = "forward_kl", 0.5
# The teacher's logits are the student's times SHARPER plus noise: as confident as real teachers are, and far
# enough from the student that swapped sides or a missing T^2 change the loss by more than rounding does.
SHARPER, NOISE = 1.5, 1.0


@dataclass(frozen=True)
class Case:
    """One problem over logits, or (widths above 0) over hidden states and their heads.

    The quantity is ``kd_ratio * T^2 * D + (1 - kd_ratio) * CE`` if ``kd_ratio`` is below 1, and ``D`` alone,
    without the ``T^2``, if it is 1: peers without a cross-entropy compute that. It is a mean over the tokens;
    T = 2, and 1 for the cross-entropy.
    """

    vocab: int
    tokens: int
    dtype: str
    device: str = "cpu"
    student_width: int = 0
    teacher_width: int = 0
    divergence: str = MAIN
    kd_ratio: float = KD_RATIO
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
        """Bytes of one tensor of logits: N V b, for N tokens and b bytes per element."""
        return self.tokens * self.vocab * self.itemsize

    @property
    def itemsize(self) -> int:
        return int(getattr(torch, self.dtype).itemsize)

    @property
    def input_bytes(self) -> int:
        """Bytes of the tensors of both sides, labels excluded."""
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
        """The bytes that a loss over logits must move: reading each side once, and writing one gradient."""
        return (3 if self.backward else 2) * self.logits_bytes


@dataclass
class Problem:
    """The tensors of a case: ``student`` and ``teacher`` are ``(logits,)`` or ``(hidden, weight)``."""

    case: Case
    student: tuple[Tensor, ...]
    teacher: tuple[Tensor, ...]
    labels: Tensor


Loss = Callable[[Problem], Tensor]


def make_problem(case: Case, device: torch.device | str | None = None, seed: int = 0) -> Problem:
    """Random tensors that depend on case and seed alone; the student's require gradients for a backward."""
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
    """One call: forward and, if the case has one, backward into new gradients, as after ``zero_grad``."""
    for x in problem.student:
        x.grad = None
    if not problem.case.backward:
        with torch.no_grad():
            return loss(problem)
    value = loss(problem)
    torch.autograd.backward(value)
    return value.detach()
