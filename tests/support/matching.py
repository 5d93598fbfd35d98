"""Students with matches, and the pairs of models and rows on which they are tested."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from support.families import bart, bert, causal_rows, class_rows, gpt2, pair_rows, t5
from support.tiny import llama

from fastkd.corpora.tasks import Task
from fastkd.trainer.heads import find_linear_head
from fastkd.trainer.matching import Matching
from fastkd.trainer.models import LinearHead, forward
from fastkd.trainer.student import DistilledStudent
from fastkd.trainer.teachers import LiveTeacher

OPTIONS: dict[str, Any] = {
    "kd_ratio": 0.5,
    "divergence": "forward_kl",
    "beta": None,
    "alpha": None,
    "temperature": 1.0,
    "teacher_temperature": None,
    "label_smoothing": 0.0,
    "vocab_size": None,
}

EVERY_KIND = [
    {"student": 1, "teacher": 2},
    {"student": -1, "teacher": 1, "loss": "cosine", "weight": 0.5},
    {"student": 1, "teacher": 2, "kind": "attention"},
    {"student": 1, "teacher": 1, "kind": "attention", "loss": "kl", "weight": 0.3},
    {"student": 1, "teacher": 2, "kind": "relation", "weight": 2.0},
    {"student": 0, "teacher": 0, "kind": "relation", "loss": "kl"},
]

CASES: dict[str, tuple[str, Callable[[], Any], Callable[[], Any], Callable[[], list[dict[str, Any]]]]] = {
    "llama": ("causal_lm", lambda: llama(0), lambda: gpt2(1, hidden=24, layers=2), causal_rows),
    "bart": ("seq2seq", lambda: bart(0), lambda: bart(1, hidden=24), pair_rows),
    "t5": ("seq2seq", lambda: t5(0), lambda: t5(1, hidden=24), pair_rows),
    "bert": ("classification", lambda: bert(0), lambda: bert(1, hidden=24), class_rows),
    "bart-classifier": (
        "classification",
        lambda: bart(0, classes=3),
        lambda: bart(1, hidden=24, classes=3),
        class_rows,
    ),
}


def distilled(
    task: Task,
    student: Any,
    teacher: Any,
    matches: list[dict[str, Any]],
    gradient_weight: float = 0.0,
    fused: bool = True,
    **options: Any,
) -> DistilledStudent:
    options = {**OPTIONS, **options}
    head = find_linear_head(student) if fused and task.name != "classification" else None
    head = head if isinstance(head, LinearHead) else None
    side = LiveTeacher(teacher, task, head is not None)
    matching = Matching(student, teacher, matches, gradient_weight, options["vocab_size"])
    return DistilledStudent(student, task, head, side, options, matching).train()


def matched(model: DistilledStudent, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The model's matching losses of a batch, called as its forward calls them."""
    matching, targets = model.matching, model.task.targets(batch["labels"])
    assert matching is not None and model.teacher is not None
    teacher = matching.prepare(model.teacher(batch, matching.requested), targets)
    inputs = model.task.model_inputs(model.student, batch)
    student = forward(model.student, model.head, inputs, matching.requested)
    return matching(student, teacher, targets, batch)


def total(model: DistilledStudent, batch: dict[str, Any]) -> torch.Tensor:
    return torch.stack(list(matched(model, batch).values())).sum()


EVERY_KIND_OF_ONE_LAYER = [{**match, "teacher": min(match["teacher"], 1)} for match in EVERY_KIND]
