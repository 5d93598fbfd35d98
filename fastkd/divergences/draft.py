"""Losses for draft models of speculative decoding (Samarin et al. 2026)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastkd.divergences.arithmetic import times
from fastkd.divergences.base import Divergence, Pair, Parameter, Result, always
from fastkd.divergences.kl import forward_kl, forward_stream
from fastkd.divergences.tvd import tvd


def log_acceptance(pair: Pair) -> Result:
    p, q, ratio = pair.log_p.exp(), pair.log_q.exp(), pair.log_ratio
    apart = tvd(pair)
    # Where p and q share little, the shared probability is summed directly, in two parts: q over the classes
    # that the student finds less likely, and p over those that the teacher does. A tie adds half to each.
    student_less, teacher_less, half = ratio > 0, ratio < 0, math.log(2)
    log_shared = pair.log_total(torch.minimum(pair.log_p, pair.log_q))
    of_student = torch.where(student_less, pair.log_q, pair.log_q - half).masked_fill(teacher_less, -math.inf)
    of_teacher = torch.where(teacher_less, pair.log_p, pair.log_p - half).masked_fill(student_less, -math.inf)
    log_u, log_v = pair.log_total(of_student), pair.log_total(of_teacher)

    def gradient(x: Tensor, log_x: Tensor, less: Tensor, more: Tensor, log_part: Tensor) -> Tensor:
        part = log_part.exp()
        share = torch.exp(log_x - log_shared)
        found = torch.where(less, (part - 1) * share, (part - 0.5) * share)
        found = torch.where(more, x * torch.exp(log_part - log_shared), found)
        return torch.where(torch.isneginf(log_shared) | torch.isneginf(log_x), 0.0, found)

    distant = Result(
        -log_shared,
        gradient(q, pair.log_q, student_less, teacher_less, log_u),
        gradient(p, pair.log_p, teacher_less, student_less, log_v),
    )
    near, shared = apart.value <= 0.875, 1 - apart.value.clamp(max=0.875)
    return Result(
        torch.where(near, -torch.log1p(-apart.value.clamp(max=0.875)), distant.value),
        torch.where(near, apart.by_student / shared, distant.by_student),
        torch.where(near, apart.by_teacher / shared, distant.by_teacher),
    )


def kl_tvd(pair: Pair) -> Result:
    forward, apart = forward_kl(pair), tvd(pair)
    shared = pair.total(torch.minimum(pair.log_p, pair.log_q).exp())
    shared = torch.where(apart.value < 0.5, 1 - apart.value, shared)  # the form that keeps more digits
    exponent = -pair.beta * shared  # of the weight, which the gradients treat as a constant
    by_forward, by_apart = torch.exp(exponent), -torch.expm1(exponent)
    return Result(*(times(by_forward, f) + by_apart * a for f, a in zip(forward, apart, strict=True)))


LOG_ACCEPTANCE = Divergence("log_acceptance", log_acceptance, sums=True, distant=True, over_vocabulary=always)
KL_TVD = Divergence(
    "kl_tvd",
    kl_tvd,
    parameters={"beta": Parameter(3.0, 0.0)},
    streams=forward_stream,
    sums=True,
    infinite_outside=always,
    over_vocabulary=always,
)
