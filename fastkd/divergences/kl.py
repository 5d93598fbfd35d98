"""The Kullback-Leibler divergences in both directions, and their sum."""

from __future__ import annotations

from torch import Tensor

from fastkd.divergences.arithmetic import difference, times
from fastkd.divergences.base import Divergence, Pair, Result, always


def _kl(pair: Pair, p: Tensor, q: Tensor, log_ratio: Tensor) -> Tensor:
    """sum p (log p - log q), with ``q - p``, whose sum is 0, added to each term.

    Each term is then of second order in a small log-ratio, and so is the effect of errors in the log-ratios.
    """
    return pair.total(times(p, log_ratio) + difference(p, q, log_ratio))


def forward_kl(pair: Pair) -> Result:
    p, q, ratio = pair.log_p.exp(), pair.log_q.exp(), pair.log_ratio
    value = _kl(pair, p, q, ratio)
    return Result(value, difference(p, q, ratio), times(p, ratio - value))


def reverse_kl(pair: Pair) -> Result:
    p, q, ratio = pair.log_p.exp(), pair.log_q.exp(), pair.log_ratio
    value = _kl(pair, q, p, -ratio)
    return Result(value, times(q, -ratio - value), -difference(p, q, ratio))


def jeffreys(pair: Pair) -> Result:
    forward, reverse = forward_kl(pair), reverse_kl(pair)
    return Result(*(a + b for a, b in zip(forward, reverse, strict=True)))


def forward_stream(alpha: float, beta: float) -> tuple[tuple[float, float], ...]:
    """One stream, the sum of the teacher's exponentials times the log-ratio."""
    return ((1, 0),)


def _reverse_stream(alpha: float, beta: float) -> tuple[tuple[float, float], ...]:
    return ((0, 1),)


def _both_streams(alpha: float, beta: float) -> tuple[tuple[float, float], ...]:
    return (1, 0), (0, 1)


FORWARD_KL = Divergence(
    "forward_kl", forward_kl, streams=forward_stream, infinite_outside=always, over_vocabulary=always
)
REVERSE_KL = Divergence("reverse_kl", reverse_kl, streams=_reverse_stream)
JEFFREYS = Divergence("jeffreys", jeffreys, streams=_both_streams, infinite_outside=always)
