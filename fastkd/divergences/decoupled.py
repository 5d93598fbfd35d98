"""Decoupled distillation (DKD, Zhao et al. 2022): label against other classes, and those among themselves."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from fastkd.divergences.arithmetic import times
from fastkd.divergences.base import Divergence, Pair, Parameter, Result, always
from fastkd.divergences.kl import forward_kl, forward_stream


def decoupled(pair: Pair) -> Result:
    assert pair.hot is not None
    hot, beta = pair.hot, pair.beta
    log_rest_p = pair.log_total(pair.log_p.masked_fill(hot, -math.inf))
    log_rest_q = pair.log_total(pair.log_q.masked_fill(hot, -math.inf))
    log_hot_p = pair.log_total(pair.log_p.masked_fill(~hot, -math.inf))
    log_hot_q = pair.log_total(pair.log_q.masked_fill(~hot, -math.inf))
    hot_p, hot_q, rest_p, rest_q = (x.exp() for x in (log_hot_p, log_hot_q, log_rest_p, log_rest_q))
    hot_ratio = pair.total(pair.log_ratio.masked_fill(~hot, 0.0))
    rest_ratio = (log_rest_p - log_rest_q).masked_fill((rest_p == 0) & (rest_q == 0), 0.0)
    target = times(hot_p, hot_ratio) + times(rest_p, rest_ratio)
    # The smaller probabilities, of the label or of the rest, keep the digits of the difference.
    gap = torch.where(hot_p < 0.5, hot_q - hot_p, rest_p - rest_q)

    def among_others(x: Tensor, log_rest: Tensor) -> Tensor:
        return torch.where(hot | torch.isneginf(x), -math.inf, x - log_rest)

    log_p, log_q = among_others(pair.log_p, log_rest_p), among_others(pair.log_q, log_rest_q)
    ratio = torch.where(
        hot | (torch.isneginf(log_p) & torch.isneginf(log_q)), 0.0, pair.log_ratio - rest_ratio
    )
    others = forward_kl(replace(pair, log_p=log_p, log_q=log_q, log_ratio=ratio))
    by_teacher = times(hot_p, times(rest_p, hot_ratio - rest_ratio))
    return Result(
        target + beta * others.value,
        torch.where(hot, gap, beta * others.by_student - gap * log_q.exp()),
        torch.where(hot, by_teacher, beta * others.by_teacher - times(log_p.exp(), by_teacher)),
    )


DECOUPLED = Divergence(
    "decoupled",
    decoupled,
    parameters={"beta": Parameter(1.0, 0.0)},
    streams=forward_stream,
    splits_label=True,
    infinite_outside=always,
)
