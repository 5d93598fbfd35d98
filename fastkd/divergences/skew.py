"""The skewed KL divergences (DistiLLM, Ko et al. 2024)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from fastkd.divergences.arithmetic import difference, log_mixture_ratio, times
from fastkd.divergences.base import Divergence, Pair, Parameter, Result, always


def skew_forward_kl(pair: Pair) -> Result:
    beta = pair.beta
    p, q = pair.log_p.exp(), pair.log_q.exp()
    p_over_m = -log_mixture_ratio(1 - beta, -pair.log_ratio)
    excess = torch.expm1(p_over_m)  # (p - m) / m; its mean under m is 0
    # m - p, whose sum is 0, makes each term of second order where the models agree, as in kl.py.
    less_p = (1 - beta) * difference(p, q, pair.log_ratio)
    value, of_q = pair.total(times(p, p_over_m) + less_p), pair.total(times(q, excess))
    by_student = (beta - 1) * times(q, excess - of_q)
    by_teacher = times(p, p_over_m - beta * excess - (value + (1 - beta) * of_q))
    return Result(value, by_student, by_teacher)


def skew_reverse_kl(pair: Pair) -> Result:
    exchanged = replace(pair, log_p=pair.log_q, log_q=pair.log_p, log_ratio=-pair.log_ratio)
    value, by_teacher, by_student = skew_forward_kl(exchanged)
    return Result(value, by_student, by_teacher)


def _skew(name: str, formula: Callable[[Pair], Result], at_zero: str) -> Divergence:
    def check(alpha: float, beta: float) -> None:
        if not 0 <= beta < 1:
            raise ValueError(f"beta must be in [0, 1) for divergence={name!r}, got {beta}")

    return Divergence(
        name,
        formula,
        parameters={"beta": Parameter(0.1)},
        check=check,
        limits={0.0: at_zero},
        sums=True,
        over_vocabulary=always,
    )


SKEW_FORWARD_KL = _skew("skew_forward_kl", skew_forward_kl, "forward_kl")
SKEW_REVERSE_KL = _skew("skew_reverse_kl", skew_reverse_kl, "reverse_kl")
