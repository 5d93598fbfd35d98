"""The objective on the student's own tokens alone, for which a teacher need not give distributions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from fastkd import SparseTeacher, sampled_kd_loss
from fastkd.corpora.tasks import IGNORE_INDEX, Batch
from fastkd.trainer.models import Distribution, HiddenLogits
from fastkd.trainer.objective import Sums, loss
from fastkd.trainer.teachers import PromptedTeacher, Teacher


@runtime_checkable
class TokenTeacher(Protocol):
    """A teacher that gives the log-probabilities of a batch's tokens more cheaply than its distributions."""

    def token_logprobs(self, batch: Batch) -> Tensor:
        """``(rows, length)`` log-probability of each position's target at temperature 1; 0 without one."""
        ...


@dataclass(frozen=True)
class SampledObjective:
    """The reverse KL, estimated from the tokens that the student has drawn.

    Attributes:
        estimator, advantage_clip: see :func:`fastkd.sampled_kd_loss`.
        vocab_size: the columns that both sides have; None for all.
    """

    estimator: str
    advantage_clip: float | None
    vocab_size: int | None

    def of_teacher(self, teacher: Teacher, batch: Batch, targets: Tensor) -> Tensor:
        """The teacher's log-probabilities of the targets, without a graph.

        Raises:
            ValueError: a teacher that knows only its likeliest tokens.
        """
        inner = teacher.teacher if isinstance(teacher, PromptedTeacher) else teacher
        if isinstance(inner, TokenTeacher):
            if not isinstance(teacher, PromptedTeacher):
                return inner.token_logprobs(batch)
            theirs, places = teacher.moved(batch)
            given = inner.token_logprobs(theirs)
            return given if places is None else given.gather(1, places)
        found = teacher(batch)
        if found is None or isinstance(found.distribution, SparseTeacher):
            raise ValueError("objective: sampled needs a teacher that knows the probability of every token")
        with torch.no_grad():
            return self._logprobs(found.distribution, targets)

    def __call__(
        self, student: Tensor | HiddenLogits, given: Tensor, targets: Tensor, num_items: Any = None
    ) -> tuple[Tensor, Sums]:
        """The loss, and the sums over the tokens of loss, ``kd`` (the estimate ``k1``) and ``ce``."""
        own, mask = self._logprobs(student, targets), targets != IGNORE_INDEX
        options: dict[str, Any] = {"estimator": self.estimator, "advantage_clip": self.advantage_clip}
        whole = sampled_kd_loss(own, given, mask=mask, reduction="sum", **options)
        count = mask.sum()
        items = count if num_items is None else num_items
        with torch.no_grad():
            sums = {"tokens": count.float(), "loss": whole.float(), "ce": -own.sum().float()}
            sums["kd"] = torch.where(mask, own - given.to(own), 0.0).sum().float()
        mean = whole / torch.as_tensor(items, device=whole.device).clamp(min=1)
        return mean, {name: value.detach() for name, value in sums.items()}

    def _logprobs(self, side: Distribution, targets: Tensor) -> Tensor:
        options = {"kd_ratio": 0.0, "vocab_size": self.vocab_size, "reduction": "none"}
        found: Tensor = -loss(side, None, targets, options)  # type: ignore[arg-type]
        return found
