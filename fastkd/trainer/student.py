"""The module that DDP or FSDP wraps: the student, and the whole loss inside its forward.

One training step calls, in this order:

1. ``DistillationTrainer.get_batch_samples`` collects the batches of one optimizer step. If the step is
   on-policy, ``OnPolicy.batches`` replaces their answers by the student's own samples, which a ``Sampler``
   writes now or has written for an earlier step. ``Trainer`` counts the valid labels of all of them
   (``num_items_in_batch``).
2. ``Trainer.training_step`` calls ``DistillationTrainer.compute_loss`` for each batch. In steps that are
   logged it sets ``with_sums``; ``Trainer.compute_loss`` then calls the wrapped model, which calls
3. ``DistilledStudent.forward``, below, which runs steps 4 to 9.
4. ``Task.targets`` moves the labels to the positions that predict them.
5. ``Teacher.__call__`` returns the teacher's :class:`ModelOutput`. A live teacher gets it from
   ``Task.model_inputs`` and ``models.forward``, a cached one from tensors that the collator has put into
   the batch.
6. ``Matching.prepare`` computes the teacher's saliency, if that is matched.
7. ``Task.model_inputs`` and ``models.forward`` do the same for the student. With a fused head, a hook keeps
   the head's input, and ``LinearHead.factors`` pairs it with the head's weight.
8. ``objective.measure`` sums kd, ce and agreement, if ``with_sums`` is set or the model is in eval mode.
9. ``objective.loss`` calls ``kd_loss`` on logits, or ``linear_kd_loss`` on hidden states and their head.
   (On the student's own samples with ``objective: sampled``, :class:`SampledObjective` takes the place of
   steps 5, 8 and 9; with a teacher of another tokenizer, :class:`CrossedObjective` takes that of 8 and 9.)
   ``Matching.forward`` adds the feature losses, and a mixture of experts has losses of its routers.
10. ``DistillationTrainer.compute_loss`` keeps the sums until the next log line, and ``Trainer`` runs the
    backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastkd.corpora.labels import MULTI_LABEL
from fastkd.corpora.tasks import IGNORE_INDEX, Task
from fastkd.trainer.crossed import CrossedObjective
from fastkd.trainer.matching import Matching
from fastkd.trainer.models import (
    NOTHING_MORE,
    HiddenLogits,
    LinearHead,
    ModelOutput,
    distributions_of,
    forward,
    known_logits,
    multiply_out,
)
from fastkd.trainer.objective import Sums, loss, measure
from fastkd.trainer.sampled import SampledObjective
from fastkd.trainer.teachers import RoutedTeachers, Teacher
from fastkd.trainer.teachers.several import rows_of


class DistilledStudent(nn.Module):
    """A model whose forward returns its distillation loss.

    Its submodules are the student and ``matching``, which may have parameters of its own. Attributes that are
    not found here are looked up in the student, so ``config``, ``generate`` and ``save_pretrained`` are the
    plain model's.

    Args:
        student: the model being trained.
        task: the task of both models.
        head: the student's linear head, for the fused loss; None for the loss on logits.
        teacher: None for training on the labels alone.
        options: keywords of :func:`fastkd.kd_loss`, and a classifier's ``problem_type``. In training, the
            teacher runs only if ``kd_ratio`` is above 0, or if ``matching`` or the log needs it.
        matching: further losses between the intermediate tensors of both models; None for none.
        sampled: the objective on the student's own samples; None for the divergence between distributions.
        crossed: the objective with a teacher of another tokenizer; None for one of the same tokenizer.
    """

    # Makes `Trainer` count the valid labels of the whole (accumulated, distributed) batch and pass the count.
    accepts_loss_kwargs = True

    def __init__(
        self,
        student: nn.Module,
        task: Task,
        head: LinearHead | None,
        teacher: Teacher | None,
        options: dict[str, Any],
        matching: Matching | None = None,
        sampled: SampledObjective | None = None,
        crossed: CrossedObjective | None = None,
    ) -> None:
        super().__init__()
        self.student = student
        self.task = task
        self.head = head
        self.teacher = teacher
        self.options = options
        self.matching = matching
        self.sampled = sampled
        self.crossed = crossed

    @property
    def _hf_peft_config_loaded(self) -> bool:
        """`Trainer` accepts a quantised model if this is set. The student itself is checked before
        (``sides.check_trainable``); `Trainer` sees only this wrapper, and not the adapter inside it.
        """
        return True

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
        with_teacher_logits: bool = False,
        own_samples: bool = False,
        **batch: Any,
    ) -> dict[str, Any]:
        """The loss of a batch.

        Args:
            labels: made by the task's collator; -100 is masked.
            num_items_in_batch: number of valid targets in the whole batch that this one is a part of; None if
                this batch is the whole.
            with_sums: also return the sums of :func:`fastkd.trainer.objective.measure`. In eval mode they are
                always returned.
            with_logits: also return the student's logits, as the student itself gives them.
            with_teacher_logits: also return the teacher's, if it gives every class a probability or at least
                the likeliest ones.
            own_samples: whether the labels are the student's own samples. The student must not be trained to
                repeat them, so the loss is the divergence alone, without cross-entropy.
            batch: all other tensors that the task's collator makes.

        Returns:
            ``loss``, and ``sums``, ``logits`` and ``teacher_logits`` if requested.

        Raises:
            ValueError: no labels, or no distributions from the teacher although ``kd_ratio`` is above 0.
        """
        if labels is None:
            raise ValueError(
                "the batch has no labels: give the data set a labels column, or leave data_collator unset"
            )
        batch["labels"] = labels
        targets = self.task.targets(labels)
        if self.options.get("problem_type") == MULTI_LABEL:
            targets = targets.long()
        if own_samples and self.sampled is not None and self.teacher is not None and self.training:
            return self._on_tokens(self.sampled, self.teacher, batch, targets, num_items_in_batch, with_sums)
        options = {**self.options, "kd_ratio": 1.0} if own_samples else self.options
        if self.crossed is not None:
            return self._across(
                *(self.crossed, batch, options["kd_ratio"], num_items_in_batch, with_sums, with_logits)
            )
        matching = self.matching if self.training else None
        requested = NOTHING_MORE if matching is None else matching.requested
        distils = options["kd_ratio"] > 0 or matching is not None or not self.training or with_sums
        if isinstance(self.teacher, RoutedTeachers) and distils:
            routed = self.teacher.parts(batch)
            return self._with_several(routed, batch, targets, options, num_items_in_batch, with_sums)
        # The teacher runs first, so that its activations are freed before those of the student are kept.
        teacher = self.teacher(batch, requested) if self.teacher is not None and distils else None
        if matching is not None and teacher is not None:
            teacher = matching.prepare(teacher, targets)
        student = forward(self.student, self.head, self.task.model_inputs(self.student, batch), requested)
        scores, soft = student.distribution, None if teacher is None else teacher.distribution
        assert isinstance(scores, (Tensor, HiddenLogits))

        found: dict[str, Any] = {}
        sums: Sums = {}
        if with_sums or not self.training:
            sums = measure(scores, soft, targets, options)
        if self.training:
            if soft is None and options["kd_ratio"] > 0:
                raise ValueError(
                    "the teacher has no distributions for this batch: its rows are not in the cache"
                )
            found["loss"] = loss(scores, soft, targets, options, num_items=num_items_in_batch)
            if matching is not None and teacher is not None:
                items = _items(targets, num_items_in_batch)
                for name, value in matching(student, teacher, targets, batch).items():
                    found["loss"] = found["loss"] + value / items
                    if sums:
                        sums[name] = value.detach().float()
            found["loss"] = found["loss"] + _of_routers(student, targets, num_items_in_batch, sums)
        else:
            found["loss"] = sums["loss"] / sums.get("counted", sums["tokens"]).clamp(min=1)
        if sums:
            found["sums"] = sums
        if with_logits:
            multi_label = self.options.get("problem_type") == MULTI_LABEL
            found["logits"] = scores[..., 1] if multi_label else multiply_out(scores)  # type: ignore[index]
            if with_teacher_logits and (known := known_logits(soft, scores)) is not None:
                found["teacher_logits"] = known[..., 1] - known[..., 0] if multi_label else known
        return found

    def _with_several(
        self,
        routed: list[tuple[Teacher, Tensor]],
        batch: dict[str, Any],
        targets: Tensor,
        options: dict[str, Any],
        num_items: Tensor | int | None,
        with_sums: bool,
    ) -> dict[str, Any]:
        """The loss of a batch whose rows have different teachers: the sum over the teachers, each of which
        divides by the targets of the whole batch.
        """
        given = [(rows, teacher(rows_of(batch, rows))) for teacher, rows in routed]
        student = forward(self.student, self.head, self.task.model_inputs(self.student, batch), NOTHING_MORE)
        items = _items(targets, num_items)
        total: Tensor | float = 0.0
        parts: list[Sums] = []
        for rows, teacher in given:
            scores, soft = distributions_of(student.distribution, rows), None
            soft = None if teacher is None else teacher.distribution
            if with_sums or not self.training:
                parts.append(measure(scores, soft, targets[rows], options))
            if self.training:
                total = total + loss(scores, soft, targets[rows], options, num_items=items)
        # Not every teacher gives every token a probability, and a mean is over all tokens.
        shared = set.intersection(*(set(part) for part in parts)) if parts else set()
        sums = {name: sum((part[name] for part in parts[1:]), parts[0][name]) for name in sorted(shared)}
        if not self.training:
            total = sums["loss"] / sums["tokens"].clamp(min=1)
        else:
            total = total + _of_routers(student, targets, num_items, sums)
        return {"loss": total, "sums": sums} if sums else {"loss": total}

    def _on_tokens(
        self,
        objective: SampledObjective,
        teacher: Teacher,
        batch: dict[str, Any],
        targets: Tensor,
        num_items: Tensor | int | None,
        with_sums: bool,
    ) -> dict[str, Any]:
        """The loss of the student's own samples from the probabilities of their tokens."""
        given = objective.of_teacher(teacher, batch, targets)
        student = forward(self.student, self.head, self.task.model_inputs(self.student, batch), NOTHING_MORE)
        loss, sums = objective(student.distribution, given, targets, num_items)  # type: ignore[arg-type]
        loss = loss + _of_routers(student, targets, num_items, sums)
        return {"loss": loss, "sums": sums} if with_sums else {"loss": loss}

    def _across(
        self,
        objective: CrossedObjective,
        batch: dict[str, Any],
        kd_ratio: float,
        num_items: Tensor | int | None,
        with_sums: bool,
        with_logits: bool,
    ) -> dict[str, Any]:
        """The loss with a teacher of another tokenizer."""
        with_sums = with_sums or not self.training
        teacher = self.teacher(batch) if self.teacher is not None and (kd_ratio > 0 or with_sums) else None
        student = forward(self.student, self.head, self.task.model_inputs(self.student, batch), NOTHING_MORE)
        scores, given = student.distribution, None if teacher is None else teacher.distribution
        loss, sums = objective(scores, given, batch, kd_ratio, num_items)  # type: ignore[arg-type]
        if self.training:
            loss = loss + _of_routers(student, self.task.targets(batch["labels"]), num_items, sums)
        found: dict[str, Any] = {"loss": loss, "sums": sums} if with_sums else {"loss": loss}
        if with_logits:
            found["logits"] = multiply_out(scores)  # type: ignore[arg-type]
        return found


def _items(targets: Tensor, num_items: Tensor | int | None) -> Tensor:
    """The number of targets in the whole batch, at least 1."""
    items = (targets != IGNORE_INDEX).sum() if num_items is None else num_items
    return torch.as_tensor(items, device=targets.device).clamp(min=1)


def _of_routers(
    student: ModelOutput, targets: Tensor, num_items: Tensor | int | None, sums: Sums
) -> Tensor | float:
    """The weighted losses of a mixture of experts, 0 without one; ``sums`` gets each, if any sums are kept.

    A router's loss is a mean over the batch's tokens. The batch counts for as much as its share of the
    targets, so that the loss does not grow with the number of micro-batches or processes.
    """
    total: Tensor | float = 0.0
    for name, router in student.router_losses.items():
        mine = (targets != IGNORE_INDEX).sum()
        total = total + router.weight * router.value * (mine / _items(targets, num_items))
        if sums:
            sums[name] = router.value.detach().float() * mine
    return total
