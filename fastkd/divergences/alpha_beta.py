"""The alpha-beta divergence (ABKD, Wang et al. 2025)."""

from __future__ import annotations

import math

import torch

from fastkd.divergences.base import Divergence, Pair, Parameter, Result
from fastkd.divergences.powers import Cross


def alpha_beta(pair: Pair) -> Result:
    a, b = pair.alpha, pair.beta
    cross = Cross(pair, a, b)
    less_q, less_p = cross.less_q_power(), cross.less_p_power()
    # c - a/(a+b) p^(a+b) - b/(a+b) q^(a+b) of each class
    terms = b / (a + b) * less_q + a / (a + b) * less_p
    # Where one power is infinite, the divergence is, but the terms above may be inf - inf.
    powers = torch.stack([cross.log_c, cross.log_p_power, cross.log_q_power]).exp()
    terms = torch.where(torch.isinf(powers).any(0), -math.copysign(math.inf, a * b), terms)
    p, q = pair.log_p.exp(), pair.log_q.exp()
    return Result(
        -pair.total(terms) / (a * b),
        -(less_q - q * pair.total(less_q)) / a,
        -(less_p - p * pair.total(less_p)) / b,
    )


def _check(alpha: float, beta: float) -> None:
    if alpha == 0 or beta == 0 or alpha + beta == 0:
        raise ValueError(f"alpha, beta and alpha + beta must not be 0, got alpha={alpha:g}, beta={beta:g}")


def _streams(alpha: float, beta: float) -> tuple[tuple[float, float], ...]:
    return (alpha, beta), (alpha + beta, 0), (0, alpha + beta)


def _has_negative_power(alpha: float, beta: float) -> bool:
    return beta < 0 or alpha + beta < 0


ALPHA_BETA = Divergence(
    "alpha_beta",
    alpha_beta,
    parameters={"alpha": Parameter(0.5), "beta": Parameter(0.5)},
    check=_check,
    streams=_streams,
    cross=True,
    infinite_outside=_has_negative_power,
)
