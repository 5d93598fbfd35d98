"""The divergences in plain torch: the one place where each is written out over whole rows.

Each function takes a :class:`Pair` and returns ``(D, dD/d(s/T), dD/d(t/T_t))``, ``D`` of shape ``(rows, 1)``.
All is in log space: no formula takes the logarithm of a sum of probabilities or divides by one that can
underflow. Entries that are -inf on both sides have ``log_ratio`` 0 and add nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from fastkd.backends.shards import Shards


@dataclass
class Pair:
    """Two distributions per row, of shape ``(rows, classes)``.

    Args:
        log_p, log_q: teacher and student, normalised over the classes (of all shards).
        log_ratio: ``log_p - log_q``, formed from the logits' difference, whose rounding is smaller.
        alpha, beta: the divergence's parameters.
        hot: bool, the label's class, for the divergence that treats it apart.
        shards: where the other classes are; None when all are here.
    """

    log_p: Tensor
    log_q: Tensor
    log_ratio: Tensor
    alpha: float
    beta: float
    hot: Tensor | None = None
    shards: Shards | None = None

    def total(self, x: Tensor) -> Tensor:
        """The sum over all classes, ``(rows, 1)``."""
        here = x.sum(-1, keepdim=True)
        return here if self.shards is None else self.shards.sum(here)

    def log_total(self, x: Tensor) -> Tensor:
        """The logarithm of the sum of ``exp(x)`` over all classes, ``(rows, 1)``."""
        if self.shards is None:
            return torch.logsumexp(x, -1, keepdim=True)
        # A shard may hold no class at all.
        edge = x.new_full((*x.shape[:-1], 1), -math.inf)
        top = self.shards.max(torch.cat([x, edge], -1).amax(-1, keepdim=True))
        top = torch.where(torch.isinf(top), 0.0, top)
        return top + torch.log(self.total(torch.exp(x - top)))


class Result(NamedTuple):
    value: Tensor
    by_student: Tensor
    by_teacher: Tensor


def _times(weight: Tensor, x: Tensor) -> Tensor:
    """``weight * x`` with ``0 * anything = 0``, the convention of every divergence."""
    return torch.where(weight == 0, torch.zeros_like(x), weight * x)


def _log_mixture_ratio(share: float, log_ratio: Tensor) -> Tensor:
    """``log((1 - share) + share * exp(log_ratio))``: a mixture relative to one of its parts."""

    def from_larger(share: float, log_ratio: Tensor) -> Tensor:
        # For a log_ratio <= 0. By the difference where it is small, by the quotient where it is not: each
        # form keeps what the other would round away.
        near = torch.log1p(share * torch.expm1(log_ratio))
        return torch.where(log_ratio > -0.7, near, torch.log((1 - share) + share * torch.exp(log_ratio)))

    # exp(log_ratio) * (share + (1 - share) * exp(-log_ratio)) for ratios above 1
    large = log_ratio + from_larger(1 - share, -log_ratio.clamp(min=0))
    return torch.where(log_ratio > 0, large, from_larger(share, log_ratio.clamp(max=0)))


def _difference(p: Tensor, q: Tensor, log_ratio: Tensor) -> Tensor:
    """``q - p``, to full relative accuracy also where the two are nearly equal."""
    return torch.where(log_ratio > 0, p * torch.expm1(-log_ratio), -q * torch.expm1(log_ratio))


def _kl(pair: Pair, p: Tensor, q: Tensor, log_ratio: Tensor) -> Tensor:
    """sum p (log p - log q), with the terms ``q - p``, whose sum is 0, added.

    Each term is then of second order in a small ratio, and so is the effect of an error in the ratios.
    """
    return pair.total(_times(p, log_ratio) + _difference(p, q, log_ratio))


def forward_kl(pair: Pair) -> Result:
    p, q, ratio = pair.log_p.exp(), pair.log_q.exp(), pair.log_ratio
    value = _kl(pair, p, q, ratio)
    return Result(value, _difference(p, q, ratio), _times(p, ratio - value))


def reverse_kl(pair: Pair) -> Result:
    p, q, ratio = pair.log_p.exp(), pair.log_q.exp(), pair.log_ratio
    value = _kl(pair, q, p, -ratio)
    return Result(value, _times(q, -ratio - value), -_difference(p, q, ratio))


def jeffreys(pair: Pair) -> Result:
    forward, reverse = forward_kl(pair), reverse_kl(pair)
    return Result(*(a + b for a, b in zip(forward, reverse, strict=True)))


def jsd(pair: Pair) -> Result:
    beta = pair.beta
    p, q = pair.log_p.exp(), pair.log_q.exp()
    p_over_m = -_log_mixture_ratio(1 - beta, -pair.log_ratio)  # log p - log m
    q_over_m = -_log_mixture_ratio(beta, pair.log_ratio)  # log q - log m
    kl_p, kl_q = pair.total(_times(p, p_over_m)), pair.total(_times(q, q_over_m))
    return Result(
        beta * kl_p + (1 - beta) * kl_q,
        (1 - beta) * _times(q, q_over_m - kl_q),
        beta * _times(p, p_over_m - kl_p),
    )


def skew_forward_kl(pair: Pair) -> Result:
    beta = pair.beta
    p, q = pair.log_p.exp(), pair.log_q.exp()
    p_over_m = -_log_mixture_ratio(1 - beta, -pair.log_ratio)
    excess = torch.expm1(p_over_m)  # (p - m) / m; its mean under m is 0
    value, of_q = pair.total(_times(p, p_over_m)), pair.total(_times(q, excess))
    by_student = (beta - 1) * _times(q, excess - of_q)
    by_teacher = _times(p, p_over_m - beta * excess - (value + (1 - beta) * of_q))
    return Result(value, by_student, by_teacher)


def skew_reverse_kl(pair: Pair) -> Result:
    exchanged = replace(pair, log_p=pair.log_q, log_q=pair.log_p, log_ratio=-pair.log_ratio)
    value, by_teacher, by_student = skew_forward_kl(exchanged)
    return Result(value, by_student, by_teacher)


def tvd(pair: Pair) -> Result:
    p, q = pair.log_p.exp(), pair.log_q.exp()
    difference = _difference(p, q, pair.log_ratio)
    sign = torch.where(difference.isnan(), difference, torch.sign(difference))  # torch.sign(NaN) is 0
    return Result(
        0.5 * pair.total(difference.abs()),
        0.5 * q * (sign - pair.total(sign * q)),
        -0.5 * p * (sign - pair.total(sign * p)),
    )


def log_acceptance(pair: Pair) -> Result:
    p, q, ratio = pair.log_p.exp(), pair.log_q.exp(), pair.log_ratio
    apart = tvd(pair)
    # Where p and q share little, what they share is summed by itself: the student's part, of the classes
    # that it finds less likely than the teacher does, and the teacher's part. A tie is half of either's.
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
    exponent = -pair.beta * shared  # of the weight, a constant for the gradients
    by_forward, by_apart = torch.exp(exponent), -torch.expm1(exponent)
    return Result(*(_times(by_forward, f) + by_apart * a for f, a in zip(forward, apart, strict=True)))


class _Cross:
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
        # Where c is the power times exp(exponent), expm1 keeps the digits of their difference.
        power, near = log_power.exp(), exponent.abs() < 1
        return torch.where(near, power * torch.expm1(exponent.clamp(-1, 1)), self.log_c.exp() - power)


def _power(pair: Pair, a: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of ``C = sum c`` with ``c = p^a q^(1 - a)``: ``C - 1``, ``log C``, ``q - c / C`` and ``p - c / C``."""
    cross = _Cross(pair, a, 1 - a)
    p, q = pair.log_p.exp(), pair.log_q.exp()
    less_q, less_p = cross.less_q_power(), cross.less_p_power()
    # With a (q - p), whose sum is 0, added, so that an error in the ratios is of second order, as in _kl.
    excess = pair.total(less_q + a * _difference(p, q, pair.log_ratio))
    log_c = pair.log_total(cross.log_c)
    near = excess.abs() < 0.5
    log_c = torch.where(near, torch.log1p(excess.clamp(-0.5, 0.5)), log_c)
    share = torch.exp(cross.log_c - log_c)  # of each class in C
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


def renyi(pair: Pair) -> Result:
    a = pair.alpha
    _, log_c, by_q, by_p = _power(pair, a)
    return Result(log_c / (a - 1), by_q, a / (1 - a) * by_p)


def alpha_beta(pair: Pair) -> Result:
    a, b = pair.alpha, pair.beta
    cross = _Cross(pair, a, b)
    less_q, less_p = cross.less_q_power(), cross.less_p_power()
    # c - a/(a+b) p^(a+b) - b/(a+b) q^(a+b), each class for itself
    terms = b / (a + b) * less_q + a / (a + b) * less_p
    # Where one power is infinite others may be too, with either sign, and the divergence is.
    powers = torch.stack([cross.log_c, cross.log_p_power, cross.log_q_power]).exp()
    terms = torch.where(torch.isinf(powers).any(0), -math.copysign(math.inf, a * b), terms)
    p, q = pair.log_p.exp(), pair.log_q.exp()
    return Result(
        -pair.total(terms) / (a * b),
        -(less_q - q * pair.total(less_q)) / a,
        -(less_p - p * pair.total(less_p)) / b,
    )


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
    target = _times(hot_p, hot_ratio) + _times(rest_p, rest_ratio)
    # The smaller probability of each pair has the digits of the difference.
    gap = torch.where(hot_p < 0.5, hot_q - hot_p, rest_p - rest_q)

    def among_others(x: Tensor, log_rest: Tensor) -> Tensor:
        return torch.where(hot | torch.isneginf(x), -math.inf, x - log_rest)

    log_p, log_q = among_others(pair.log_p, log_rest_p), among_others(pair.log_q, log_rest_q)
    ratio = torch.where(
        hot | (torch.isneginf(log_p) & torch.isneginf(log_q)), 0.0, pair.log_ratio - rest_ratio
    )
    others = forward_kl(replace(pair, log_p=log_p, log_q=log_q, log_ratio=ratio))
    by_teacher = _times(hot_p, _times(rest_p, hot_ratio - rest_ratio))
    return Result(
        target + beta * others.value,
        torch.where(hot, gap, beta * others.by_student - gap * log_q.exp()),
        torch.where(hot, by_teacher, beta * others.by_teacher - _times(log_p.exp(), by_teacher)),
    )


Formula = Callable[[Pair], Result]
FORMULAS: dict[str, Formula] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jeffreys": jeffreys,
    "jsd": jsd,
    "skew_forward_kl": skew_forward_kl,
    "skew_reverse_kl": skew_reverse_kl,
    "tvd": tvd,
    "hellinger": hellinger,
    "alpha": alpha,
    "renyi": renyi,
    "alpha_beta": alpha_beta,
    "decoupled": decoupled,
    "log_acceptance": log_acceptance,
    "kl_tvd": kl_tvd,
}
