"""Divergences that are functions of the sum of ``p**a q**(1 - a)``."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastkd.divergences.arithmetic import difference
from fastkd.divergences.base import Divergence, Pair, Parameter, Result, always


class Cross:
    """``c = p^a q^b``, and its differences from powers of one side."""

    def __init__(self, pair: Pair, a: float, b: float) -> None:
        self.pair, self.a, self.b = pair, a, b
        nowhere = torch.isneginf(pair.log_p) & torch.isneginf(pair.log_q)
        self.log_c = torch.where(nowhere, -math.inf, a * pair.log_p + b * pair.log_q)
        self.log_p_power = torch.where(nowhere, -math.inf, (a + b) * pair.log_p)
        self.log_q_power = torch.where(nowhere, -math.inf, (a + b) * pair.log_q)

    def less_q_power(self) -> Tensor:
        """``p^a q^b - q^(a + b)``"""
        return self._less(self.log_q_power, self.a * self.pair.log_ratio)

    def less_p_power(self) -> Tensor:
        """``p^a q^b - p^(a + b)``"""
        return self._less(self.log_p_power, -self.b * self.pair.log_ratio)

    def _less(self, log_power: Tensor, exponent: Tensor) -> Tensor:
        # c is the power times exp(exponent); for small exponents expm1 keeps the digits of their difference.
        power, near = log_power.exp(), exponent.abs() < 1
        return torch.where(near, power * torch.expm1(exponent.clamp(-1, 1)), self.log_c.exp() - power)


def _power(pair: Pair, a: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``C - 1``, ``log C``, ``q - c / C`` and ``p - c / C``, with ``c = p^a q^(1 - a)`` and ``C = sum c``."""
    cross = Cross(pair, a, 1 - a)
    p, q = pair.log_p.exp(), pair.log_q.exp()
    less_q, less_p = cross.less_q_power(), cross.less_p_power()
    # Each term has a (q - p) added, whose sum is 0: an error in the log-ratios is then of second order, as in
    # kl._kl.
    excess = pair.total(less_q + a * difference(p, q, pair.log_ratio))
    log_c = pair.log_total(cross.log_c)
    near = excess.abs() < 0.5
    log_c = torch.where(near, torch.log1p(excess.clamp(-0.5, 0.5)), log_c)
    share = torch.exp(cross.log_c - log_c)  # each class's part of C
    share = torch.where(torch.isneginf(cross.log_c), 0.0, share)
    by_q = torch.where(near, (q * excess - less_q) / (1 + excess), q - share)
    by_p = torch.where(near, (p * excess - less_p) / (1 + excess), p - share)
    return excess, log_c, by_q, by_p


def hellinger(pair: Pair) -> Result:
    excess, log_c, by_q, by_p = _power(pair, 0.5)
    half = 0.5 * log_c.exp()
    return Result(-excess, half * by_q, half * by_p)


def alpha(pair: Pair) -> Result:
    a = pair.alpha
    excess, log_c, by_q, by_p = _power(pair, a)
    c = log_c.exp()
    return Result(-excess / (a * (1 - a)), c / a * by_q, c / (1 - a) * by_p)


def pearson_chi2(pair: Pair) -> Result:
    excess, log_c, by_q, by_p = _power(pair, 2.0)
    c = log_c.exp()
    return Result(excess, c * by_q, -2 * c * by_p)


def renyi(pair: Pair) -> Result:
    a = pair.alpha
    _, log_c, by_q, by_p = _power(pair, a)
    return Result(log_c / (a - 1), by_q, a / (1 - a) * by_p)


def _halves(alpha: float, beta: float) -> tuple[tuple[float, float], ...]:
    return ((0.5, 0.5),)


def _square(alpha: float, beta: float) -> tuple[tuple[float, float], ...]:
    return ((2.0, -1.0),)


def _stream(alpha: float, beta: float) -> tuple[tuple[float, float], ...]:
    return ((alpha, 1 - alpha),)


def _alpha_check(alpha: float, beta: float) -> None:
    if alpha in (0, 1):
        limit = "reverse_kl" if alpha == 0 else "forward_kl"
        raise ValueError(
            f"alpha must not be {alpha:g}: the alpha-divergence tends to divergence={limit!r} there"
        )


def _renyi_check(alpha: float, beta: float) -> None:
    if alpha <= 0 or alpha == 1:
        hint = ": the Renyi divergence tends to divergence='forward_kl' there" if alpha == 1 else ""
        raise ValueError(f"alpha must be positive and not 1 for divergence='renyi', got {alpha:g}{hint}")


def _above_one(alpha: float, beta: float) -> bool:
    return alpha > 1


def _positive(alpha: float, beta: float) -> bool:
    return alpha > 0


HELLINGER = Divergence("hellinger", hellinger, streams=_halves, cross=True, over_vocabulary=always)
ALPHA = Divergence(
    "alpha",
    alpha,
    parameters={"alpha": Parameter(0.5)},
    check=_alpha_check,
    streams=_stream,
    cross=True,
    infinite_outside=_above_one,
    over_vocabulary=_positive,
)
PEARSON_CHI2 = Divergence(
    "pearson_chi2",
    pearson_chi2,
    streams=_square,
    cross=True,
    infinite_outside=always,
    over_vocabulary=always,
)
RENYI = Divergence(
    "renyi",
    renyi,
    parameters={"alpha": Parameter(0.5)},
    check=_renyi_check,
    streams=_stream,
    cross=True,
    infinite_outside=_above_one,
    over_vocabulary=always,
)
