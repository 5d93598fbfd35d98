"""NVIDIA ModelOpt's distillation loss on logits, alone and as its KDTrainer calls it."""

from types import SimpleNamespace

import torch
from modelopt.torch.distill import LogitsDistillationLoss
from modelopt.torch.distill.plugins.huggingface import KDTrainer
from torch import Tensor

from fastkd.conformance.adapter import Adapter, Call


def loss(call: Call) -> Tensor:
    criterion = LogitsDistillationLoss(temperature=call.temperature, reduction=call.reduction)
    return criterion(call.student, call.teacher)


def in_trainer(call: Call) -> Tensor:
    """The trainer's step from logits to loss, which shifts: it drops the last logits and the first label."""
    criterion = LogitsDistillationLoss(temperature=call.temperature, reduction="none")
    student, teacher = (
        SimpleNamespace(logits=torch.cat([x, x[:, :1].detach()], 1))
        for x in (call.student, call.teacher_logits)
    )
    labels = call.labels
    if labels is None:
        labels = torch.zeros(call.student.shape[:-1], dtype=torch.int64, device=call.student.device)
    trainer = SimpleNamespace(_kd_criterion=criterion, _last_teacher_outputs=teacher)
    return KDTrainer._standard_kd_loss(trainer, student, torch.cat([labels[:, :1], labels], 1))


adapters = (
    Adapter(
        "ModelOpt",
        loss,
        function="modelopt.torch.distill.LogitsDistillationLoss",
        packages=("nvidia-modelopt",),
        reductions={"mean": "elements", "batchmean": "sequences", "sum": "sum", "none": "none"},
        takes=("temperature",),
        notes=(
            "Its default reduction also averages over the vocabulary.",
            'Masks are left to the caller, who reduces the losses of `reduction="none"`.',
        ),
    ),
    Adapter(
        "ModelOpt trainer",
        in_trainer,
        function="modelopt.torch.distill.plugins.huggingface.KDTrainer._standard_kd_loss",
        packages=("nvidia-modelopt",),
        takes=("labels", "temperature"),
        in_float32=True,
        notes=("It converts logits to float32 first.",),
    ),
)
