"""Measures the fraction of a training step that the loss takes, with fastkd and by hand with ``F.kl_div``."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from fastkd import HiddenTeacher, linear_kd_loss

Loss = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def measure(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    batch: Tensor,
    kd_ratio: float,
    temperature: float,
    repeats: int,
) -> dict[str, dict[str, float]]:
    """Time steps of ``student`` on ``batch`` (input ids ``(batch, length)``), the two losses in turn.

    The loss begins at the last hidden states of both models and ends at the gradient for the student's:
    output heads, softmaxes, divergence, cross-entropy and their backward. The rest is both models' layers,
    the student's backward through them, and the optimizer. The student's weights are restored at the end.

    Returns:
        For ``fastkd`` and ``plain``: the medians ``loss_seconds`` and ``rest_seconds``, the loss's fraction
        of the step as ``share``, and the ``value`` of the loss before any step, equal for both up to
        rounding.
    """

    def fused(
        hidden: Tensor, weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor, labels: Tensor
    ) -> Tensor:
        return linear_kd_loss(
            *(hidden, weight, HiddenTeacher(teacher_hidden, teacher_weight), labels),
            kd_ratio=kd_ratio,
            temperature=temperature,
        )

    def plain(
        hidden: Tensor, weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor, labels: Tensor
    ) -> Tensor:
        valid = labels.flatten() != -100
        logits = (hidden @ weight.t()).flatten(0, 1)[valid]
        with torch.no_grad():
            teacher_logits = (teacher_hidden @ teacher_weight.t()).flatten(0, 1)[valid]
        kd = F.kl_div(
            F.log_softmax(logits / temperature, -1),
            F.softmax(teacher_logits / temperature, -1),
            reduction="batchmean",
        )
        ce = F.cross_entropy(logits, labels.flatten()[valid])
        return kd_ratio * kd * temperature**2 + (1 - kd_ratio) * ce

    student.train()
    teacher.eval()
    start = {name: value.clone() for name, value in student.state_dict().items()}
    times: dict[str, list[tuple[float, float]]] = {"fastkd": [], "plain": []}
    optimizers = {name: torch.optim.AdamW(student.parameters(), lr=1e-5) for name in times}
    values = {
        name: _value(student, teacher, batch, loss) for name, loss in (("fastkd", fused), ("plain", plain))
    }
    for _ in range(repeats + 1):
        for name, loss in (("fastkd", fused), ("plain", plain)):  # in turn, so that both meet the same noise
            times[name].append(_step(student, teacher, batch, loss, optimizers[name]))
    student.load_state_dict(start)
    report = {}
    # The rest is the same work with either loss, so its median is over both; each first step is a warm-up.
    rest_seconds = statistics.median(rest for pairs in times.values() for _, rest in pairs[1:])
    for name, pairs in times.items():
        loss_seconds = statistics.median(loss for loss, _ in pairs[1:])
        report[name] = {
            "loss_seconds": loss_seconds,
            "rest_seconds": rest_seconds,
            "share": loss_seconds / (loss_seconds + rest_seconds),
            "value": values[name],
        }
    return report


@torch.no_grad()
def _value(student: PreTrainedModel, teacher: PreTrainedModel, batch: Tensor, loss: Loss) -> float:
    hidden, teacher_hidden = (
        model.model(input_ids=batch, use_cache=False)[0] for model in (student, teacher)
    )
    labels = F.pad(batch[:, 1:], (0, 1), value=-100)
    return loss(hidden, student.lm_head.weight, teacher_hidden, teacher.lm_head.weight, labels).item()


def _step(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    batch: Tensor,
    loss: Loss,
    optimizer: torch.optim.Optimizer,
) -> tuple[float, float]:
    """Seconds of the loss and of everything else in one training step."""
    labels = F.pad(batch[:, 1:], (0, 1), value=-100)
    began = _now(batch)
    with torch.no_grad():
        teacher_hidden = teacher.model(input_ids=batch, use_cache=False)[0]
    hidden = student.model(input_ids=batch, use_cache=False)[0]
    cut = hidden.detach().requires_grad_()
    loss_began = _now(batch)
    value = loss(cut, student.lm_head.weight, teacher_hidden, teacher.lm_head.weight, labels)
    value.backward()
    loss_ended = _now(batch)
    hidden.backward(cut.grad)
    optimizer.step()
    optimizer.zero_grad()
    ended = _now(batch)
    return loss_ended - loss_began, (ended - began) - (loss_ended - loss_began)


def _now(on: Tensor) -> float:
    if on.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter()


def describe(report: dict[str, Any]) -> str:
    """The report as text for the terminal, one line for each loss."""
    lines = ["The loss's share of a training step, output heads included:"]
    for name, shown in (("fastkd", "fastkd"), ("plain", "F.kl_div + F.cross_entropy")):
        loss, rest = (report[name][key] * 1e3 for key in ("loss_seconds", "rest_seconds"))
        lines.append(f"  {shown:<27}{report[name]['share']:4.0%}  ({loss:.0f} of {loss + rest:.0f} ms)")
    return "\n".join(lines)
