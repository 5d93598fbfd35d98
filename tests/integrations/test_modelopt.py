"""Test the criterion for ModelOpt, against its definition in plain torch and against the package itself."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from support.same_loss import assert_alike
from torch import Tensor, nn

from fastkd.errors import Unsupported
from fastkd.integrations.modelopt import REDUCTIONS, LogitsDistillationLoss

SHAPES = [(5, 33), (2, 3, 40)]


def plain(student: Tensor, teacher: Tensor, temperature: float, reduction: str) -> Tensor:
    log_q, p = F.log_softmax(student / temperature, -1), F.softmax(teacher.detach() / temperature, -1)
    loss = F.kl_div(log_q, p, reduction=reduction) * temperature**2
    return loss.sum(-1) if reduction == "none" else loss


def inputs(shape: tuple[int, ...]) -> list[Tensor]:
    return [3 * torch.randn(shape), 3 * torch.randn(shape)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_definition(shape: tuple[int, ...], reduction: str) -> None:
    ours = LogitsDistillationLoss(temperature=1.7, reduction=reduction)
    assert_alike(ours, lambda s, t: plain(s, t, 1.7, reduction), inputs(shape))


def test_another_reduction_is_refused() -> None:
    with pytest.raises(Unsupported, match=r"fastkd\.integrations\.modelopt does not take reduction='tokens'"):
        LogitsDistillationLoss(reduction="tokens")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("options", [{}, *({"reduction": name, "temperature": 2.5} for name in REDUCTIONS)])
def test_equals_the_package(shape: tuple[int, ...], options: dict[str, object]) -> None:
    package = pytest.importorskip("modelopt.torch.distill")
    theirs = package.LogitsDistillationLoss(**options)
    assert_alike(LogitsDistillationLoss(**options), theirs, inputs(shape))  # type: ignore[arg-type]


def test_in_a_distillation_model() -> None:
    """``mtd.convert`` takes the criterion, and the step has the loss and the gradients of its own."""
    package = pytest.importorskip("modelopt.torch.distill")
    x = torch.randn(4, 8)
    found = []
    for loss in (package.LogitsDistillationLoss(2.0), LogitsDistillationLoss(2.0)):
        torch.manual_seed(1)
        student, teacher = nn.Linear(8, 20), nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 20))
        config = {"teacher_model": teacher, "criterion": loss, "loss_balancer": None}
        model = package.convert(student, mode=[("kd_loss", config)])
        model.train()
        model(x)
        value = model.compute_kd_loss()
        value.backward()
        found.append((value.detach(), model.weight.grad, model.bias.grad))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_in_the_trainer_for_transformers() -> None:
    """``KDTrainer`` has its criterion in an attribute, and masks one loss per token."""
    package = pytest.importorskip("modelopt.torch.distill")
    plugin = pytest.importorskip("modelopt.torch.distill.plugins.huggingface")
    student, teacher = (torch.randn(2, 5, 30) for _ in range(2))
    labels = torch.tensor([[-100, 1, 2, -100, 4], [-100, -100, 3, 4, 5]])
    found = []
    for loss in (package.LogitsDistillationLoss, LogitsDistillationLoss):
        trainer = SimpleNamespace(
            _kd_criterion=loss(2.0, "none"), _last_teacher_outputs=SimpleNamespace(logits=teacher)
        )
        logits = student.clone().requires_grad_()
        value = plugin.KDTrainer._standard_kd_loss(trainer, SimpleNamespace(logits=logits), labels)
        value.backward()
        found.append((value.detach(), logits.grad))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)
