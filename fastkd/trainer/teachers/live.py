"""Teachers that run beside the student."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from transformers import PreTrainedModel

from fastkd.corpora.contexts import evaluating
from fastkd.corpora.tasks import Batch, Task
from fastkd.trainer.heads import find_linear_head, output_width
from fastkd.trainer.models import NOTHING_MORE, LinearHead, ModelOutput, Requested, forward


class LiveTeacher:
    """A model, frozen in place and in eval mode.

    Args:
        model: the teacher.
        task: the task of the model.
        fused: return hidden states with the head instead of logits, if the head is linear.
    """

    live = True

    def __init__(self, model: PreTrainedModel, task: Task, fused: bool) -> None:
        self.model = model.requires_grad_(False).eval()
        self.task = task
        self.columns = _columns(model, task)
        self.head = fused_head(model) if fused else None

    def to(self, device: torch.device) -> None:
        """Move to the student's device, unless the teacher was placed (or quantised) when it was loaded."""
        placed = getattr(self.model, "hf_device_map", None) is not None
        if not placed and not getattr(self.model, "is_quantized", False):
            self.model.to(device)

    def __call__(self, batch: Batch, requested: Requested = NOTHING_MORE) -> ModelOutput:
        # A frozen model can still be differentiated with respect to its embeddings, and to nothing else.
        with torch.set_grad_enabled(requested.embeddings):
            return forward(self.model, self.head, self.task.model_inputs(self.model, batch), requested)


class BaseTeacher:
    """The student's own base model, with the student's adapter switched off: no second set of weights.

    Args:
        student: a ``peft.PeftModel``, whose training mode and adapter are left as they were.
        task, fused: as for :class:`LiveTeacher`.

    Raises:
        ValueError: a student without an adapter.
    """

    live = True

    def __init__(self, student: Any, task: Task, fused: bool) -> None:
        if not hasattr(student, "disable_adapter"):
            raise ValueError(
                "teacher: base is the student without its adapter, but the student has none: set peft_config"
            )
        self.model, self.task = student, task
        self.columns = _columns(student, task)
        self.head = fused_head(student) if fused else None

    def to(self, device: torch.device) -> None:
        """Nothing to move: this teacher is part of the student."""

    def __call__(self, batch: Batch, requested: Requested = NOTHING_MORE) -> ModelOutput:
        # A teacher has no dropout.
        with evaluating(self.model), _adapter_off(self.model), torch.set_grad_enabled(requested.embeddings):
            return forward(self.model, self.head, self.task.model_inputs(self.model, batch), requested)


def fused_head(model: Any) -> LinearHead | None:
    """The model's linear head, for the fused loss; None if it has none."""
    head = find_linear_head(model)
    return head if isinstance(head, LinearHead) else None


def _columns(model: Any, task: Task) -> int:
    return output_width(model) if task.name != "classification" else model.config.num_labels


@contextlib.contextmanager
def _adapter_off(model: Any) -> Iterator[None]:
    """Switches the adapter off without changing which parameters are trainable.

    ``disable_adapter`` of `peft` also freezes the adapter, and afterwards makes all of it trainable. This
    context restores ``requires_grad`` both times, because FSDP reads it whenever it gathers the weights.
    """
    trainable = [(parameter, parameter.requires_grad) for parameter in model.parameters()]

    def put_back() -> None:
        for parameter, before in trainable:
            if parameter.requires_grad != before:
                parameter.requires_grad_(before)

    try:
        with model.disable_adapter():
            put_back()
            yield
    finally:
        put_back()
