"""A teacher whose outputs for held-out batches are kept, since every evaluation asks for them again."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from fastkd import HiddenTeacher
from fastkd.corpora.tasks import Batch
from fastkd.trainer.models import NOTHING_MORE, ModelOutput, Requested
from fastkd.trainer.teachers.base import Teacher
from fastkd.trainer.teachers.reordered import plain_teacher

# Bytes of outputs that are kept in the main memory. The batches after them run through the teacher each time.
LIMIT = 512 * 2**20


class Memory:
    """A teacher's outputs for batches without gradients, by a digest of the batch. A run has one for all of
    its models.

    Attributes:
        outputs: logits, or the hidden states under a linear head.
        bytes: their size.
    """

    def __init__(self) -> None:
        self.outputs: dict[str, Tensor] = {}
        self.bytes = 0

    def keep(self, name: str, output: Tensor) -> None:
        size = output.numel() * output.element_size()
        if self.bytes + size <= LIMIT:
            self.outputs[name] = output.detach().cpu()
            self.bytes += size


class RememberedTeacher:
    """Another teacher, which runs only for batches that it has not seen in an evaluation before.

    Args:
        teacher: a live teacher, in any order of its classes. Its weights never change.
        memory: the outputs of the same teacher so far.
    """

    def __init__(self, teacher: Teacher, memory: Memory) -> None:
        self.teacher, self.memory = teacher, memory
        self.columns, self.live = teacher.columns, teacher.live

    def to(self, device: torch.device) -> None:
        self.teacher.to(device)

    def __call__(self, batch: Batch, requested: Requested = NOTHING_MORE) -> ModelOutput | None:
        if torch.is_grad_enabled() or requested != NOTHING_MORE:  # a step of training, whose batches differ
            return self.teacher(batch, requested)
        name = _digest(batch)
        kept = self.memory.outputs.get(name)
        if kept is not None:
            kept = kept.to(batch["input_ids"].device)
            head = getattr(plain_teacher(self.teacher), "head", None)
            return ModelOutput(kept if head is None else head.factors(kept))
        found = self.teacher(batch, requested)
        if found is not None:
            given = found.distribution
            if isinstance(given, HiddenTeacher):
                self.memory.keep(name, given.hidden)  # the head is the teacher's own, and need not be kept
            elif isinstance(given, Tensor):
                self.memory.keep(name, given)
        return found


def _digest(batch: Batch) -> str:
    made = hashlib.blake2b(digest_size=16)
    for name, value in sorted(batch.items()):
        if isinstance(value, Tensor):
            made.update(f"{name} {tuple(value.shape)}".encode())
            made.update(value.cpu().contiguous().numpy().tobytes())
    return made.hexdigest()
