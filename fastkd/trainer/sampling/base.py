"""The protocol of a sampler, which writes the student's answers to prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch


@dataclass(frozen=True)
class Draw:
    """How answers are drawn.

    Attributes:
        ends: tokens that end an answer.
        suppressed: columns of the student's logits that are never drawn.
        longest: most tokens of an answer.
        temperature: of the softmax that tokens are drawn from.
        options: further options of ``generate`` that change the distribution, such as ``top_p``.
        seed: decides the draws: the same seed, weights and prompts give the same answers.
    """

    ends: set[int]
    suppressed: list[int]
    longest: int
    temperature: float
    options: dict[str, Any]
    seed: int


class Sampler(Protocol):
    """Draws answers from the student with the weights that it has at the time of the call."""

    def start(self, student: Any) -> None:
        """Prepare for this student; called before every step, so that nothing fails hours later.

        Raises:
            ValueError: the sampler cannot run this student.
        """

    def sample(
        self,
        student: Any,
        prompts: Sequence[list[int]],
        draw: Draw,
        device: torch.device,
        sharded: bool = False,
    ) -> list[list[int]]:
        """One answer to each prompt, with its end-of-sequence token if the student drew one.

        Prompts are never cut: near the end of the student's window the answers are shorter instead. The
        global random state stays as it was.

        Args:
            student: the plain model, perhaps with an adapter.
            prompts: token ids, none of them empty.
            draw: how the answers are drawn.
            device: the device of the student's inputs.
            sharded: whether FSDP has gathered the student's weights for this call.
        """

    def close(self) -> None:
        """Give back what :meth:`start` took; a later :meth:`start` begins again."""
