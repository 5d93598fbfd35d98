"""The losses that are compared: fastkd and what people use today, all with the same value."""

from __future__ import annotations

import importlib.util
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import fastkd
from bench.cases import KD_RATIO, TEMPERATURE, Case, Loss, Problem


def fastkd_loss(problem: Problem) -> Tensor:
    labels = problem.labels
    if problem.case.linear:
        hidden, weight = problem.student
        teacher_hidden, teacher_weight = problem.teacher
        teacher = fastkd.HiddenTeacher(teacher_hidden, teacher_weight)
        return fastkd.linear_kd_loss(
            hidden, weight, teacher, labels, kd_ratio=KD_RATIO, temperature=TEMPERATURE
        )
    (student,), (logits,) = problem.student, problem.teacher
    return fastkd.kd_loss(student, logits, labels, kd_ratio=KD_RATIO, temperature=TEMPERATURE)


def plain(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """The loss as it is written by hand, in the dtype of the logits."""
    t = TEMPERATURE
    log_q, p = F.log_softmax(student / t, -1), F.softmax(teacher / t, -1)
    kd = F.kl_div(log_q, p, reduction="batchmean") * t * t
    return KD_RATIO * kd + (1 - KD_RATIO) * F.cross_entropy(student, labels)


def plain_linear(hs: Tensor, ws: Tensor, ht: Tensor, wt: Tensor, labels: Tensor) -> Tensor:
    return plain(F.linear(hs, ws), F.linear(ht, wt), labels)


def _plain_arguments(problem: Problem) -> tuple[Tensor, ...]:
    return (*problem.student, *problem.teacher, problem.labels)


def eager(problem: Problem) -> Tensor:
    return (plain_linear if problem.case.linear else plain)(*_plain_arguments(problem))


@cache
def _compiled(linear: bool) -> Any:
    return torch.compile(plain_linear if linear else plain, fullgraph=True, dynamic=False)


def compiled(problem: Problem) -> Tensor:
    value: Tensor = _compiled(problem.case.linear)(*_plain_arguments(problem))
    return value


@cache
def _liger() -> Any:
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    # beta 0 is the forward KL; its soft loss carries no T^2, which the weight makes up for.
    return LigerFusedLinearJSDLoss(
        weight_hard_loss=1 - KD_RATIO,
        weight_soft_loss=KD_RATIO * TEMPERATURE**2,
        beta=0.0,
        temperature=TEMPERATURE,
    )


def liger_chunked(problem: Problem) -> Tensor:
    value: Tensor = _liger()(*problem.student, *problem.teacher, problem.labels)
    return value


def trl(problem: Problem) -> Tensor:
    from trl.experimental.gkd import GKDTrainer

    student, teacher = problem.student[0], problem.teacher[0]
    generalized_jsd: Any = GKDTrainer.generalized_jsd_loss
    kd: Tensor = generalized_jsd(student, teacher, beta=0.0, temperature=TEMPERATURE, reduction="batchmean")
    ce = F.cross_entropy(student, problem.labels)
    return KD_RATIO * TEMPERATURE**2 * kd + (1 - KD_RATIO) * ce


ROUTES: dict[str, Loss] = {
    "fastkd": fastkd_loss,
    "eager": eager,
    "torch.compile": compiled,
    "liger": liger_chunked,
    "trl": trl,
}


def missing(route: str, case: Case) -> str | None:
    """Why the route cannot run the case; None when it can."""
    if route == "liger" and not case.linear:
        return "its chunked loss takes hidden states"
    if route == "trl" and case.linear:
        return "its loss takes logits"
    package = {"liger": "liger_kernel", "trl": "trl"}.get(route)
    if package and importlib.util.find_spec(package) is None:
        return f"{package} is not installed"
    return None
