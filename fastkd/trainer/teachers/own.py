"""The student as its own teacher: its weights of now, of the beginning, or their moving average."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from fastkd.corpora.contexts import evaluating
from fastkd.corpora.tasks import Batch, Task
from fastkd.trainer.heads import output_width
from fastkd.trainer.models import NOTHING_MORE, ModelOutput, Requested, forward
from fastkd.trainer.teachers.live import fused_head

WEIGHTS = ("live", "initial", "ema")
# The file of the moving average in a checkpoint.
FILE = "self_teacher.safetensors"


class SelfTeacher:
    """The student, in eval mode and without a graph.

    Args:
        student: a plain model, or one with an adapter.
        task, fused: as for :class:`LiveTeacher`.
        weights: ``live``, the student's own; ``initial``, a copy of those with which training begins; or
            ``ema``, a copy that follows them.
        decay: of the moving average: after each optimizer step a weight of the copy is ``decay`` times itself
            and ``1 - decay`` times the student's.
    """

    live = True

    def __init__(
        self, student: Any, task: Task, fused: bool, weights: str = "live", decay: float = 0.999
    ) -> None:
        self.student, self.task, self.weights, self.decay = student, task, weights, decay
        self.model = student if weights == "live" else copy.deepcopy(student).requires_grad_(False).eval()
        self.columns = output_width(student)
        self.head = fused_head(self.model) if fused else None

    def to(self, device: torch.device) -> None:
        """Move the copy to the student's device."""
        if self.model is not self.student:
            self.model.to(device)

    def __call__(self, batch: Batch, requested: Requested = NOTHING_MORE) -> ModelOutput:
        """The distributions of the batch, without a graph."""
        if requested != NOTHING_MORE:
            raise ValueError("teacher: self has the student's own layers, which cannot be compared with them")
        with evaluating(self.model), torch.no_grad():
            return forward(self.model, self.head, self.task.model_inputs(self.model, batch))

    @torch.no_grad()
    def follow(self) -> None:
        """Move the average a step towards the student."""
        if self.weights != "ema":
            return
        for own, other in zip(self.model.parameters(), self.student.parameters(), strict=True):
            own.lerp_(other.to(own), 1 - self.decay)
        for own, other in zip(self.model.buffers(), self.student.buffers(), strict=True):
            own.copy_(other)

    def save(self, folder: Path) -> None:
        """Write the average into a checkpoint."""
        if self.weights == "ema":
            tensors = {
                name: x.detach().cpu().contiguous().clone() for name, x in self.model.named_parameters()
            }
            save_file(tensors, folder / FILE)

    def load(self, folder: Path) -> None:
        """Read the average from a checkpoint.

        Raises:
            ValueError: the checkpoint has none, or that of another model.
        """
        if self.weights != "ema":
            return
        if not (folder / FILE).is_file():
            raise ValueError(f"{folder} has no {FILE}: it was made without self_weights: ema")
        found = load_file(folder / FILE)
        own = dict(self.model.named_parameters())
        if set(found) != set(own) or any(found[name].shape != own[name].shape for name in own):
            raise ValueError(f"{folder / FILE} is another model's")
        with torch.no_grad():
            for name, x in own.items():
                x.copy_(found[name])


class Follow(TrainerCallback):  # type: ignore[misc]
    """Lets the moving average follow each optimizer step."""

    def __init__(self, teacher: SelfTeacher) -> None:
        self.teacher = teacher

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.teacher.follow()
