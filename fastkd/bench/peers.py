"""Defines the losses that fastkd is compared with, each on exactly the quantity that it computes.

Peers that take log-probabilities or probabilities get them computed from logits, as their users must do.
Peers that return the divergence without the T^2 are compared with fastkd's loss without it (``kd_ratio`` 1).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastkd.bench import plain
from fastkd.bench.cases import TEMPERATURE, Case, Problem
from fastkd.bench.routes import OURS, Route, needs, never

T = TEMPERATURE
# beta in the generalised JSD of GKD, where 0 means the forward KL and 1 the reverse KL.
GKD_BETA = {"forward_kl": 0.0, "jsd": 0.5, "reverse_kl": 1.0}


def _logits(problem: Problem) -> tuple[Tensor, Tensor]:
    return problem.student[0], problem.teacher[0]


def _plain_of(case: Case) -> Callable[..., Tensor]:
    loss = plain.loss_of(case)
    if not case.linear:
        return loss

    def from_hidden(hs: Tensor, ws: Tensor, ht: Tensor, wt: Tensor, labels: Tensor) -> Tensor:
        student = F.linear(hs, ws)
        return loss(student, F.linear(ht, wt) if case.kd_ratio > 0 else student, labels)

    return from_hidden


def eager(problem: Problem) -> Tensor:
    return _plain_of(problem.case)(*problem.student, *problem.teacher, problem.labels)


@cache
def _compiled(case: Case) -> Any:
    return torch.compile(_plain_of(case), fullgraph=True, dynamic=False)


def compiled(problem: Problem) -> Tensor:
    value: Tensor = _compiled(problem.case)(*problem.student, *problem.teacher, problem.labels)
    return value


def forget_compiled() -> None:
    """Drop all compiled graphs, since torch stops compiling a function after a few shapes."""
    _compiled.cache_clear()
    if "torch._dynamo" in sys.modules:  # otherwise nothing was compiled, and importing it takes seconds
        torch.compiler.reset()


def torch_linear_cross_entropy(problem: Problem) -> Tensor:
    torch_loss: Any = F.linear_cross_entropy
    value: Tensor = torch_loss(*problem.student, problem.labels, options=torch.nn.LinearCrossEntropyOptions())
    return value


def _no_linear_cross_entropy(device: str) -> str | None:
    if hasattr(F, "linear_cross_entropy") and hasattr(torch.nn, "LinearCrossEntropyOptions"):
        return None
    return f"torch {torch.__version__} has no F.linear_cross_entropy with chunks (2.13 has)"


@cache
def _liger_kernels() -> Any:
    import liger_kernel.transformers as kernels

    return kernels


def liger_kl_div(problem: Problem) -> Tensor:
    s, t = _logits(problem)
    value: Tensor = _liger_kernels().LigerKLDIVLoss(reduction="batchmean")(
        F.log_softmax(s / T, -1), F.softmax(t / T, -1)
    )
    return value


def liger_jsd(problem: Problem) -> Tensor:
    s, t = _logits(problem)
    beta = GKD_BETA[problem.case.divergence]
    value: Tensor = _liger_kernels().LigerJSD(beta=beta)(F.log_softmax(s / T, -1), F.log_softmax(t / T, -1))
    return value


def liger_tvd(problem: Problem) -> Tensor:
    s, t = _logits(problem)
    value: Tensor = _liger_kernels().LigerTVDLoss(reduction="batchmean")(
        F.softmax(s / T, -1), F.softmax(t / T, -1)
    )
    return value


def liger_fused_linear_jsd(problem: Problem) -> Tensor:
    fused = _liger_kernels().LigerFusedLinearJSD(jsd_beta=GKD_BETA[problem.case.divergence], temperature=T)
    value: Tensor = fused(*problem.student, *problem.teacher, None)
    return value


def liger_fused_linear_kl(problem: Problem) -> Tensor:
    with torch.no_grad():
        target = F.softmax(F.linear(*problem.teacher) / T, -1)  # Liger takes the teacher's probabilities
    value: Tensor = _liger_kernels().LigerFusedLinearKLDivLoss(temperature=T)(*problem.student, target)
    return value


@cache
def _liger_chunked(beta: float, kd_ratio: float) -> Any:
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    # Liger's soft loss has no factor T^2, so the weight includes it.
    soft = kd_ratio * T**2 if kd_ratio < 1 else 1.0
    return LigerFusedLinearJSDLoss(
        weight_hard_loss=1 - kd_ratio, weight_soft_loss=soft, beta=beta, temperature=T
    )


def liger_chunked(problem: Problem) -> Tensor:
    case = problem.case
    loss = _liger_chunked(GKD_BETA[case.divergence], case.kd_ratio)
    value: Tensor = loss(*problem.student, *problem.teacher, problem.labels)
    return value


def trl_gkd(problem: Problem) -> Tensor:
    from trl.experimental.gkd import GKDTrainer

    s, t = _logits(problem)
    beta = GKD_BETA[problem.case.divergence]
    value: Tensor = GKDTrainer.generalized_jsd_loss(s, t, beta=beta, temperature=T, reduction="batchmean")
    return value


def trl_chunked(problem: Problem) -> Tensor:
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    (hs, ws), (ht, wt) = problem.student, problem.teacher
    beta = GKD_BETA[problem.case.divergence]
    per_token, _ = ChunkedDivergenceFunction.apply(hs, ws, None, ht, wt, None, beta, T)
    value: Tensor = per_token.mean()
    return value


def orda(problem: Problem) -> Tensor:
    from orda_kernel import SeparateTeacher, distillation_loss

    case = problem.case
    jsd = case.divergence == "jsd"
    # Orda's KL always has the factor T^2, so the weight cancels it where the quantity has none.
    weight = case.kd_ratio if case.kd_ratio < 1 else T**-2
    out = distillation_loss(
        *(*problem.student, problem.labels, SeparateTeacher(*problem.teacher)),
        student_ce_weight=1 - case.kd_ratio,
        teacher_ce_weight=0.0,
        kl_weight=weight,
        kl_temperature=T,
        kl_divergence="skew_js" if jsd else "forward",
        kl_beta=0.5 if jsd else None,
    )
    value: Tensor = out.loss
    return value


def _alone(linear: bool, *divergences: str) -> Callable[[Case], bool]:
    """Whether a case is one of these divergences without cross-entropy."""
    return lambda case: case.linear == linear and case.kd_ratio == 1 and case.divergence in divergences


def _with_labels(*divergences: str) -> Callable[[Case], bool]:
    """Whether a case is one of these divergences over hidden states, with or without cross-entropy."""
    return lambda case: case.linear and case.kd_ratio > 0 and case.divergence in divergences


_LIGER = needs("liger_kernel", "liger_kernel.transformers", gpu=True)
_LIGER_CHUNKED = needs("liger_kernel", "liger_kernel.chunked_loss")
_TRL = needs("trl", "trl.experimental.gkd")
_TRL_CHUNKED = needs("trl", "trl.kernels.chunked_divergence")
_ORDA = needs("orda_kernel", "orda_kernel")

PEERS = [
    Route("eager", "eager", "plain torch, in the dtype of the logits", eager, plain.takes, never),
    Route(
        "torch.compile", "torch.compile", "the same, compiled for each shape", compiled, plain.takes, never
    ),
    Route(
        "F.linear_cross_entropy",
        family="F.linear_cross_entropy",
        about="torch's, in chunks; cross-entropy alone",
        loss=torch_linear_cross_entropy,
        takes=lambda case: case.linear and case.kd_ratio == 0,
        absent=_no_linear_cross_entropy,
    ),
    Route(
        "liger",
        family="liger",
        about="LigerKLDIVLoss after log_softmax; the divergence alone",
        loss=liger_kl_div,
        takes=_alone(False, "forward_kl"),
        absent=_LIGER,
    ),
    Route(
        "liger JSD",
        family="liger",
        about="LigerJSD after log_softmax; the divergence alone",
        loss=liger_jsd,
        takes=_alone(False, "jsd", "reverse_kl"),
        absent=_LIGER,
    ),
    Route(
        "liger TVD",
        family="liger",
        about="LigerTVDLoss after softmax; the divergence alone",
        loss=liger_tvd,
        takes=_alone(False, "tvd"),
        absent=_LIGER,
    ),
    Route(
        "liger fused",
        family="liger",
        about="LigerFusedLinearJSD; the divergence alone",
        loss=liger_fused_linear_jsd,
        takes=_alone(True, *GKD_BETA),
        absent=_LIGER,
    ),
    Route(
        "liger fused KL",
        family="liger",
        about="LigerFusedLinearKLDivLoss on the teacher's softmax; the KL alone",
        loss=liger_fused_linear_kl,
        takes=_alone(True, "forward_kl"),
        absent=_LIGER,
    ),
    Route(
        "liger chunked",
        family="liger",
        about="LigerFusedLinearJSDLoss, compiled; with or without cross-entropy",
        loss=liger_chunked,
        takes=_with_labels(*GKD_BETA),
        absent=_LIGER_CHUNKED,
    ),
    Route(
        "trl",
        family="trl",
        about="GKDTrainer.generalized_jsd_loss; the divergence alone",
        loss=trl_gkd,
        takes=_alone(False, *GKD_BETA),
        absent=_TRL,
    ),
    Route(
        "trl chunked",
        family="trl",
        about="ChunkedDivergenceFunction of DistillationTrainer; the divergence alone",
        loss=trl_chunked,
        takes=_alone(True, *GKD_BETA),
        absent=_TRL_CHUNKED,
    ),
    Route(
        "orda",
        family="orda-kernel",
        about="distillation_loss with a SeparateTeacher; on a CPU its plain torch",
        loss=orda,
        takes=_with_labels("forward_kl", "jsd"),
        absent=_ORDA,
    ),
]

# The peers whose loss is the plain torch that users write.
BY_HAND = ("eager", "torch.compile")
FAMILIES = list(dict.fromkeys(route.family for route in PEERS))
ROUTES = {route.name: route for route in (*OURS, *PEERS)}
