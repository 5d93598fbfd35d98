"""The lines that users write: ``F.kl_div`` of two softmaxes, times T^2, on the rows that count."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from fastkd.conformance.adapter import Adapter, Call


def lines(
    student: Tensor, teacher: Tensor, labels: Tensor | None, t: float, kd_ratio: float, reduction: str
) -> Tensor:
    kd = F.kl_div(F.log_softmax(student / t, -1), F.softmax(teacher / t, -1), reduction=reduction) * t * t
    return kd if labels is None else kd_ratio * kd + (1 - kd_ratio) * F.cross_entropy(student, labels)


def with_rows_selected(lines: Callable[..., Tensor]) -> Callable[[Call], Tensor]:
    def loss(call: Call) -> Tensor:
        call = call.flat
        student, teacher, labels = call.student, call.teacher_logits, call.labels
        if labels is not None:
            valid = labels != -100
            student, teacher, labels = student[valid], teacher[valid], labels[valid]
        if call.kd_ratio == 1:
            labels = None
        return lines(student, teacher, labels, call.temperature, call.kd_ratio, call.reduction)

    return loss


adapters = (
    Adapter(
        "plain torch",
        with_rows_selected(lines),
        function="F.kl_div(F.log_softmax(s / T), F.softmax(t / T)) * T * T, and F.cross_entropy",
        packages=("torch",),
        reductions={"batchmean": "valid tokens", "sum": "sum"},
        takes=("labels", "temperature", "kd_ratio"),
        teacher_gradient=True,
        notes=("The rows that count are selected before the call, as users do.",),
    ),
)
