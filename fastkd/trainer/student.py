"""The module that a distributed wrapper wraps: the student, and the whole loss inside its forward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastkd import HiddenTeacher
from fastkd.trainer.heads import LinearHead, multiply_out, run
from fastkd.trainer.matching import Matching
from fastkd.trainer.objective import Sums, loss, measure
from fastkd.trainer.tasks import IGNORE_INDEX, Task
from fastkd.trainer.teachers import Teacher
from fastkd.trainer.views import NOTHING_MORE


class DistilledStudent(nn.Module):
    """A model whose forward returns its distillation loss.

    Its submodules are the student and what ``matching`` learns. Attributes that are not found here are the
    student's, so code that asks for ``config``, ``generate`` or ``save_pretrained`` gets the plain model's.

    Args:
        student: the model that learns.
        task: what it does.
        head: its linear head, for the fused loss; None for the loss on logits.
        teacher: None when there is nothing to distil from.
        options: keywords of :func:`fastkd.kd_loss`; the teacher runs in training only if something needs it.
        matching: further losses between the insides of both models; None for none.
    """

    # Has `Trainer` count the valid labels of the whole (accumulated, distributed) batch and pass them on.
    accepts_loss_kwargs = True

    def __init__(
        self,
        student: nn.Module,
        task: Task,
        head: LinearHead | None,
        teacher: Teacher | None,
        options: dict[str, Any],
        matching: Matching | None = None,
    ) -> None:
        super().__init__()
        self.student = student
        self.task = task
        self.head = head
        self.teacher = teacher
        self.options = options
        self.matching = matching

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("student"), name)

    def forward(
        self,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        with_sums: bool = False,
        with_logits: bool = False,
        own_samples: bool = False,
        **batch: Any,
    ) -> dict[str, Any]:
        """The loss of a batch.

        Args:
            labels: as the task's collator makes them; -100 is masked.
            num_items_in_batch: valid targets in the whole batch that this one is a part of; None when it is
                all of it.
            with_sums: also return what :func:`fastkd.trainer.objective.measure` returns. Always, in eval
            mode.
            with_logits: also return the student's logits.
            own_samples: the labels are the student's own words, which it is not trained to repeat: no
                cross-entropy, the divergence alone.
            batch: everything else that the task's collator makes.

        Returns:
            ``loss``, and ``sums`` and ``logits`` where asked for.

        Raises:
            ValueError: no labels.
        """
        if labels is None:
            raise ValueError(
                "the batch has no labels: give the data set a labels column, or leave data_collator unset"
            )
        batch["labels"] = labels
        targets = self.task.targets(labels)
        options = {**self.options, "kd_ratio": 1.0} if own_samples else self.options
        matching = self.matching if self.training else None
        wanted = NOTHING_MORE if matching is None else matching.wanted
        distils = options["kd_ratio"] > 0 or matching is not None or not self.training or with_sums
        # Before the student, so that the teacher's activations are gone when the student's are kept.
        teacher = self.teacher(batch, wanted) if self.teacher is not None and distils else None
        if matching is not None and teacher is not None:
            teacher = matching.prepare(teacher, targets)
        student = run(self.student, self.head, self.task.model_inputs(self.student, batch), wanted)
        scores, soft = student.distribution, None if teacher is None else teacher.distribution
        assert isinstance(scores, (Tensor, HiddenTeacher))

        found: dict[str, Any] = {}
        sums: Sums = {}
        if with_sums or not self.training:
            sums = measure(scores, soft, targets, options)
        if self.training:
            if soft is None and options["kd_ratio"] > 0:
                raise ValueError("the teacher says nothing of this batch: its rows are not in the cache")
            found["loss"] = loss(scores, soft, targets, options, num_items=num_items_in_batch)
            if matching is not None and teacher is not None:
                mask = targets != IGNORE_INDEX
                items = mask.sum() if num_items_in_batch is None else num_items_in_batch
                items = torch.as_tensor(items, device=targets.device).clamp(min=1)
                for name, value in matching(student, teacher, targets, batch).items():
                    found["loss"] = found["loss"] + value / items
                    if sums:
                        sums[name] = value.detach().float()
        else:
            found["loss"] = sums["loss"] / sums["tokens"].clamp(min=1)
        if sums:
            found["sums"] = sums
        if with_logits:
            found["logits"] = multiply_out(scores)
        return found
