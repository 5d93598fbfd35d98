"""The loss as users write it by hand: the eager peer in the logits' dtype, and the oracle in float64.

A divergence without a formula here is measured without these peers, since nothing else in fastkd is what a
user would write: the formulas in ``fastkd/divergences`` compute gradients too, and their time would flatter
fastkd. The oracle, whose time does not matter, uses them for such a divergence.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fastkd.bench.cases import TEMPERATURE, Case

# A function (student logits / T, teacher logits / T, labels) -> D, averaged over the rows.
Formula = Callable[[Tensor, Tensor, Tensor], Tensor]


def _kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    """KL(a, b), averaged over the rows."""
    return F.kl_div(log_b, log_a, reduction="batchmean", log_target=True)


def _forward_kl(s: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    return F.kl_div(F.log_softmax(s, -1), F.softmax(t, -1), reduction="batchmean")


def _reverse_kl(s: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    return _kl(F.log_softmax(s, -1), F.log_softmax(t, -1))


def _jeffreys(s: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    log_q, log_p = F.log_softmax(s, -1), F.log_softmax(t, -1)
    return _kl(log_p, log_q) + _kl(log_q, log_p)


def _mixture(log_a: Tensor, log_b: Tensor, b: float) -> Tensor:
    """log(b a + (1 - b) b)."""
    return torch.logaddexp(log_a + math.log(b), log_b + math.log(1 - b))


def _jsd(s: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    log_q, log_p = F.log_softmax(s, -1), F.log_softmax(t, -1)
    log_m = _mixture(log_p, log_q, 0.5)
    return 0.5 * _kl(log_p, log_m) + 0.5 * _kl(log_q, log_m)


def _skew_forward_kl(s: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    log_q, log_p = F.log_softmax(s, -1), F.log_softmax(t, -1)
    return _kl(log_p, _mixture(log_p, log_q, 0.1))


def _skew_reverse_kl(s: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    log_q, log_p = F.log_softmax(s, -1), F.log_softmax(t, -1)
    return _kl(log_q, _mixture(log_q, log_p, 0.1))


def _tvd(s: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    return 0.5 * (F.softmax(t, -1) - F.softmax(s, -1)).abs().sum(-1).mean()


def _log_acceptance(s: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    return -torch.minimum(F.softmax(t, -1), F.softmax(s, -1)).sum(-1).log().mean()


def _kl_tvd(s: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    log_q, log_p = F.log_softmax(s, -1), F.log_softmax(t, -1)
    tvd = 0.5 * (log_p.exp() - log_q.exp()).abs().sum(-1)
    forward = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
    weight = torch.exp(-3 * (1 - tvd.detach()))
    return (weight * forward + (1 - weight) * tvd).mean()


def _overlap(s: Tensor, t: Tensor, a: float) -> Tensor:
    """sum p^a q^(1-a) of each row."""
    return (a * F.log_softmax(t, -1) + (1 - a) * F.log_softmax(s, -1)).exp().sum(-1)


def _hellinger(s: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    return (1 - _overlap(s, t, 0.5)).mean()


def _alpha(s: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    return 4 * (1 - _overlap(s, t, 0.5)).mean()


def _renyi(s: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    return -2 * _overlap(s, t, 0.5).log().mean()


def _alpha_beta(s: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    p, q = F.softmax(t, -1), F.softmax(s, -1)
    return -4 * ((p * q).sqrt() - 0.5 * p - 0.5 * q).sum(-1).mean()


def _pearson_chi2(s: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    p, q = F.softmax(t, -1), F.softmax(s, -1)
    return ((p - q).square() / q).sum(-1).mean()


def _triangular(s: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    p, q = F.softmax(t, -1), F.softmax(s, -1)
    return ((p - q).square() / (p + q)).sum(-1).mean()


def _decoupled(s: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    log_q, log_p = F.log_softmax(s, -1), F.log_softmax(t, -1)
    at_label = torch.zeros_like(log_q, dtype=torch.bool).scatter_(-1, labels[:, None], True)
    rest = [torch.log_softmax(x.masked_fill(at_label, -torch.inf), -1) for x in (t, s)]
    # Both logarithms are set to 0 at the label, so its term is e^0 (0 - 0) = 0.
    nckd = _kl(*(x.masked_fill(at_label, 0) for x in rest))
    split = [x.gather(-1, labels[:, None]).squeeze(-1) for x in (log_p, log_q)]
    p, q = split[0].exp(), split[1].exp()
    tckd = (p * (split[0] - split[1]) + (1 - p) * (torch.log1p(-p) - torch.log1p(-q))).mean()
    return tckd + nckd


FORMULAS: dict[str, Formula] = {
    "forward_kl": _forward_kl,
    "reverse_kl": _reverse_kl,
    "jeffreys": _jeffreys,
    "jsd": _jsd,
    "skew_forward_kl": _skew_forward_kl,
    "skew_reverse_kl": _skew_reverse_kl,
    "tvd": _tvd,
    "hellinger": _hellinger,
    "alpha": _alpha,
    "renyi": _renyi,
    "alpha_beta": _alpha_beta,
    "pearson_chi2": _pearson_chi2,
    "triangular": _triangular,
    "decoupled": _decoupled,
    "log_acceptance": _log_acceptance,
    "kl_tvd": _kl_tvd,
}


def missing(divergence: str) -> str:
    """Why there is no loss written by hand for a divergence."""
    return f"no formula of {divergence}, as a user would write it, is in fastkd/bench/plain.py"


def takes(case: Case) -> bool:
    return case.kd_ratio == 0 or case.divergence in FORMULAS


def loss_of(case: Case, formula: Formula | None = None) -> Formula:
    """A function ``(student logits, teacher logits, labels) -> loss`` for the case's quantity.

    Args:
        formula: the divergence; None for the one in ``FORMULAS``.

    Raises:
        ValueError: there is none.
    """
    ratio, t = case.kd_ratio, TEMPERATURE
    if ratio == 0:
        return lambda student, teacher, labels: F.cross_entropy(student, labels)
    if formula is None and not takes(case):
        raise ValueError(missing(case.divergence))
    divergence = formula or FORMULAS[case.divergence]

    def loss(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        kd = divergence(student / t, teacher / t, labels)
        if ratio == 1:
            return kd
        return ratio * t * t * kd + (1 - ratio) * F.cross_entropy(student, labels)

    return loss
