"""The module that a distributed wrapper wraps: the student, and the whole loss inside its forward."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from fastkd import HiddenTeacher, kd_loss, linear_kd_loss
from fastkd.trainer.heads import LinearHead, row_logits
from fastkd.trainer.measure import measure
from fastkd.trainer.teacher import LiveTeacher

IGNORE_INDEX = -100


def next_token_labels(labels: Tensor) -> Tensor:
    """``(batch, length)`` labels moved so that each position holds the token after it, the last one none.

    The one place where anything is shifted: logits and hidden states keep all their positions.
    """
    return F.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)


class DistilledStudent(nn.Module):
    """A causal language model whose forward returns its distillation loss.

    The student is the only submodule. Attributes that are not found here are the student's, so code that
    asks for ``config``, ``generate`` or ``save_pretrained`` gets the plain model's.

    Args:
        student: the model that learns.
        head: its linear head, for the fused loss; None for the loss on logits.
        teacher: None when there is nothing to distil from.
        options: keywords of :func:`fastkd.kd_loss`; the teacher runs in training only if ``kd_ratio`` > 0.
        vocab_size: columns that both sides have, None for all.
    """

    # Has `Trainer` count the valid labels of the whole (accumulated, distributed) batch and pass them on.
    accepts_loss_kwargs = True

    def __init__(
        self,
        student: nn.Module,
        head: LinearHead | None,
        teacher: LiveTeacher | None,
        options: dict[str, Any],
        vocab_size: int | None,
    ) -> None:
        super().__init__()
        self.student = student
        self.head = head
        self.teacher = teacher
        self.options = options
        self.vocab_size = vocab_size

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("student"), name)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        with_sums: bool = False,
        with_logits: bool = False,
    ) -> dict[str, Tensor]:
        """The loss of a batch.

        Args:
            input_ids, attention_mask, position_ids: ``(batch, length)``, for student and teacher alike.
            labels: ``(batch, length)`` aligned with ``input_ids`` as in `transformers`; -100 is masked.
            num_items_in_batch: valid next-token labels in the whole batch that this one is a part of; None
                when it is all of it.
            with_sums: also return what :func:`fastkd.trainer.measure.measure` returns. Always, in eval mode.
            with_logits: also return the student's logits.

        Returns:
            ``loss``, and ``sums`` and ``logits`` where asked for.

        Raises:
            ValueError: no labels.
        """
        if labels is None:
            raise ValueError(
                "the batch has no labels: give the data set a labels column, or leave data_collator unset"
            )
        inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
        if position_ids is not None:
            inputs["position_ids"] = position_ids
        targets = next_token_labels(labels)
        distils = self.options["kd_ratio"] > 0 or not self.training or with_sums
        # Before the student, so that the teacher's activations are gone when the student's are kept.
        teacher = self.teacher(inputs) if self.teacher is not None and distils else None
        if self.head is None:
            student: Tensor | HiddenTeacher = self.student(**inputs, use_cache=False).logits
        else:
            student = self.head.factors(self.head.hidden(inputs))

        found: dict[str, Tensor] = {}
        if with_sums or not self.training:
            found["sums"] = measure(student, teacher, targets, self.options, self.vocab_size)
        if self.training:
            found["loss"] = self._loss(student, teacher, targets, num_items_in_batch)
        else:
            found["loss"] = found["sums"][0] / found["sums"][-1]
        if with_logits:
            found["logits"] = row_logits(student, slice(None)).view(*labels.shape, -1)
        return found

    def _loss(
        self,
        student: Tensor | HiddenTeacher,
        teacher: Tensor | HiddenTeacher | None,
        targets: Tensor,
        num_items: Tensor | int | None,
    ) -> Tensor:
        options = {**self.options, "num_items": num_items, "vocab_size": self.vocab_size}
        # Without a teacher (kd_ratio is 0) the student stands in for it; the loss does not read it.
        if isinstance(student, Tensor):
            logits = student.detach() if teacher is None else teacher
            assert isinstance(logits, Tensor), "a teacher hands out hidden states only beside a fused student"
            return kd_loss(student, logits, targets, **options)
        return linear_kd_loss(
            student.hidden,
            student.weight,
            HiddenTeacher(student.hidden.detach(), student.weight.detach()) if teacher is None else teacher,
            targets,
            student_bias=student.bias,
            logit_scale=student.logit_scale,
            logit_softcap=student.logit_softcap,
            **options,
        )
