"""Triangular discrimination, a symmetric chi-squared distance (Topsoe 2000)."""

from __future__ import annotations

import torch

from fastkd.divergences.arithmetic import difference
from fastkd.divergences.base import Divergence, Pair, Result, always


def triangular(pair: Pair) -> Result:
    p, q = pair.log_p.exp(), pair.log_q.exp()
    r = -torch.tanh(0.5 * pair.log_ratio)  # (q - p) / (q + p)
    by_q, by_p = r * (2 - r), -r * (2 + r)  # derivatives of (p - q)^2 / (p + q)
    return Result(
        pair.total(difference(p, q, pair.log_ratio) * r),
        q * (by_q - pair.total(q * by_q)),
        p * (by_p - pair.total(p * by_p)),
    )


TRIANGULAR = Divergence("triangular", triangular, sums=True, over_vocabulary=always)
