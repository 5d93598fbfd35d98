"""How large rounding errors may be in a random call.

The error allowed in a result follows from the magnitudes of the terms that are added up in it. Let u be the
unit roundoff of the arithmetic (2^-24, or 2^-53 for float64). An exponent ``s / T - logsumexp(s / T)`` is
then known within a few u times M = max|s| / T + max|t| / T_t + log V + 1, because each of its terms is
rounded. Each term of a formula is off by a few u M times its magnitude, and a sum is off by the sum of these
errors. A gradient is rounded once more to its dtype. ``magnitudes`` lists the terms of each divergence; "a
few" is K for one element and K_SUM for a sum.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from support.oracle import INF
from support.random_calls import Example
from torch import Tensor

from fastkd.divergences import DIVERGENCES

K = 8.0
# A lane of a vector adds up to 128 terms in float32 before it continues in double precision. Equal terms all
# round in the same direction.
K_SUM = 4 * K
ROUNDING = {torch.float64: 2**-53, torch.float32: 2**-24, torch.bfloat16: 2**-8, torch.float16: 2**-11}
# Error of the power of a probability that is below float32's range.
SMALLEST = {torch.float64: 1e-250, torch.float32: 1e-28, torch.bfloat16: 1e-28, torch.float16: 2**-24}


def row_scale(e: Example, labels: Tensor | None, weights: Tensor | None) -> Tensor:
    """The factor by which the reduction multiplies each row's loss."""
    w = torch.ones(e.leading, dtype=torch.float64) if weights is None else weights.double()
    if labels is not None:
        w = torch.where(labels == -100, 0.0, w)
    if e.options["reduction"] == "batchmean":
        w = w / e.leading[0]
    if e.options["reduction"] == "mean":
        total = w.sum() if e.options["num_items"] is None else torch.tensor(7.0)
        w = w / total if total != 0 else w * 0
    return w


def _mean(weight: Tensor, x: Tensor) -> Tensor:
    return torch.where(weight > 0, weight * x, 0.0).sum(-1, keepdim=True)


def _times(weight: Tensor, x: Tensor) -> Tensor:
    return torch.where(weight > 0, weight * x, 0.0)


def magnitudes(
    e: Example, log_p: Tensor, log_q: Tensor, labels: Tensor, noise: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Magnitudes of the terms in ``D``, in dD/d(s/T) and in dD/d(t/T_t). ``noise`` is an exponent's error."""
    name = e.divergence
    a, b = e.parameters.get("alpha", 0.5), e.parameters.get("beta", 0.5)
    p, q = log_p.exp(), log_q.exp()
    neither = (log_p == -INF) & (log_q == -INF)
    ratio = (log_p - log_q).abs().masked_fill(neither, 0.0)
    if name == "jsd" and b in (0.0, 1.0):
        name = "forward_kl" if b == 0 else "reverse_kl"
    if name.startswith("skew") and b == 0.0:
        name = name.removeprefix("skew_")

    if name in ("forward_kl", "reverse_kl", "jeffreys"):
        # The gradient with respect to the side that D averages over contains D itself.
        forward = 1 + _mean(p, ratio), p + q, _times(p, K_SUM / K + ratio + _mean(p, ratio))
        reverse = 1 + _mean(q, ratio), _times(q, K_SUM / K + ratio + _mean(q, ratio)), p + q
        if name == "jeffreys":
            return tuple(x + y for x, y in zip(forward, reverse, strict=True))  # type: ignore[return-value]
        return forward if name == "forward_kl" else reverse
    if name == "jsd":
        m = torch.logaddexp(log_p + math.log(b), log_q + math.log1p(-b))
        to_p, to_q = ((x - m).abs().masked_fill(neither, 0.0) for x in (log_p, log_q))
        of_p, of_q = _mean(p, to_p), _mean(q, to_q)
        value = 1 + b * of_p + (1 - b) * of_q
        return value, _times(q, 1 + (1 - b) * (to_q + of_q)), _times(p, 1 + b * (to_p + of_p))
    if name.startswith("skew"):
        forward = name == "skew_forward_kl"
        log_x, log_y = (log_p, log_q) if forward else (log_q, log_p)
        x, y = log_x.exp(), log_y.exp()
        log_m = torch.logaddexp(log_x + math.log(b), log_y + math.log1p(-b))
        to_m = (log_x - log_m).abs().masked_fill(neither, 0.0)
        excess = torch.exp(torch.logaddexp(log_x, log_y) - log_m).masked_fill(neither, 0.0)
        of_x, of_y = 1 + _mean(x, to_m), _mean(y, excess)
        by_x, by_y = _times(x, to_m + of_x + b * excess + of_y), _times(y, excess + of_y)
        return (of_x, by_y, by_x) if forward else (of_x, by_x, by_y)
    # Where p and q differ by less than their error, the sign of their difference is unknown.
    unsure = (ratio <= 2 * K * noise) / noise
    if name == "tvd":
        by_q, by_p = (x * (1 + unsure + (x * unsure).sum(-1, keepdim=True)) for x in (q, p))
        return torch.ones_like(p[..., :1]), by_q, by_p
    if name == "triangular":
        # |dD/dq| is at most 3, and by a relative error of q - p it changes by at most twice that error.
        by_q, by_p = (4 * (x + x * _mean(x, torch.ones_like(x))) for x in (q, p))
        return 2 * torch.ones_like(p[..., :1]), by_q, by_p
    if name == "log_acceptance":
        smaller = torch.minimum(log_p, log_q)
        log_shared = torch.logsumexp(smaller, -1, keepdim=True)
        share = torch.where(neither, 0.0, (smaller - log_shared).exp())  # each entry's part of sum min(p, q)
        # For near rows the loss is computed from the differences, as log(1 - TVD), which loses digits.
        lost = torch.where(log_shared < math.log(0.1), 1.0, (-log_shared).exp())
        by_q, by_p = (
            torch.where(x <= y * (1 + 2 * K * noise), share, x) * lost * (1 + unsure)
            + x * lost * (1 + (share * unsure).sum(-1, keepdim=True))
            for x, y in ((q, p), (p, q))
        )
        return lost, by_q, by_p
    if name == "kl_tvd":
        forward = 1 + _mean(p, ratio)
        weight = torch.exp(-b * torch.minimum(p, q).sum(-1, keepdim=True))
        own = weight * (1 + b)  # includes the weight's own error, which is b times TVD's
        by_q, by_p = (x * (1 + unsure + (x * unsure).sum(-1, keepdim=True)) for x in (q, p))
        by_forward = _times(p, K_SUM / K + ratio + forward)
        return own * forward + 1, own * (p + q) + by_q, own * by_forward + by_p
    if name == "decoupled":
        at = F.one_hot(labels, p.shape[-1]).bool()
        rest = [torch.logsumexp(x.masked_fill(at, -INF), -1, keepdim=True) for x in (log_p, log_q)]
        label = [x.gather(-1, labels[..., None]) for x in (log_p, log_q)]
        gaps = [(x[0] - x[1]).abs().nan_to_num(0.0) for x in (label, rest)]
        p_label, p_rest = label[0].exp(), rest[0].exp()
        others_p, others_q = (
            torch.where(at | (x == -INF), 0.0, (x - y).exp())
            for x, y in zip((log_p, log_q), rest, strict=True)
        )
        among = ratio + gaps[1]
        spread = K_SUM / K + _mean(others_p, among)
        split = _times(p_label, gaps[0]) + _times(p_rest, gaps[1])
        both = _times(p_label * p_rest, 1 + gaps[0] + gaps[1])
        by_s = torch.where(
            at, torch.minimum(p_label + q, 2 - p_label - q), b * (others_p + others_q) + others_q
        )
        by_t = torch.where(at, both, _times(others_p, b * (among + spread) + both))
        return 1 + split + b * spread, by_s, by_t
    if name in ("hellinger", "pearson_chi2"):
        a = 0.5 if name == "hellinger" else 2.0
    elif "alpha" not in DIVERGENCES[name].parameters:
        raise NotImplementedError(f"the magnitudes of {name}'s terms")
    if name != "alpha_beta":
        b = 1 - a
    w = 1 + abs(a) + abs(b)

    def power(of_p: float, of_q: float) -> Tensor:
        exponent = (of_p * log_p if of_p else 0.0) + (of_q * log_q if of_q else 0.0)
        return torch.where(neither, 0.0, torch.exp(exponent))

    cross = power(a, b)
    total = cross.sum(-1, keepdim=True)
    if name == "alpha_beta":
        of_p, of_q = power(a + b, 0.0), power(0.0, a + b)
        sums = [x.sum(-1, keepdim=True) for x in (of_p, of_q)]
        value = w * (total + sums[0] + sums[1]) / abs(a * b)
        by_s = w / abs(a) * (cross + of_q + q * (total + sums[1]))
        return value, by_s, w / abs(b) * (cross + of_p + p * (total + sums[0]))
    if name == "renyi":
        one = torch.ones_like(total)
        return w / abs(1 - a) * one, w * (cross / total + q), w * abs(a / (1 - a)) * (cross / total + p)
    factor = abs(a * b) if name in ("hellinger", "pearson_chi2") else 1.0
    value = w * factor * (1 + total) / abs(a * b)
    return value, w * factor / abs(a) * (cross + total * q), w * factor / abs(b) * (cross + total * p)


def bounds(
    e: Example, s: Tensor, t: Tensor, labels: Tensor | None, scale: Tensor, unit: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Error allowed in each row's value and each gradient element, before the rounding to its dtype."""
    o = e.options
    temperature = float(o["temperature"])  # type: ignore[arg-type]
    teacher_temperature = float(o["teacher_temperature"] or temperature)  # type: ignore[arg-type]
    kd, kd_ratio = (temperature**2 if o["t_squared"] else 1.0), float(o["kd_ratio"])  # type: ignore[arg-type]
    hidden = torch.zeros(e.leading, dtype=torch.bool) if labels is None else labels == -100
    label = torch.zeros(e.leading, dtype=torch.int64) if labels is None else labels.masked_fill(hidden, 0)
    s = s[..., : e.vocab].double().masked_fill(hidden[..., None], 0.0)
    t = t[..., : e.vocab].double().masked_fill(hidden[..., None], 0.0)

    def largest(x: Tensor) -> Tensor:
        return torch.where(x == -INF, 0.0, x.abs()).amax(-1, keepdim=True)

    m_one = largest(s) + math.log(e.vocab) + 1
    m = largest(s) / temperature + largest(t) / teacher_temperature + math.log(e.vocab) + 1
    log_p, log_q = F.log_softmax(t / teacher_temperature, -1), F.log_softmax(s / temperature, -1)
    value, by_s, by_t = torch.zeros_like(m), torch.zeros_like(s), torch.zeros_like(t)
    if kd_ratio > 0:
        terms = magnitudes(e, log_p, log_q, label, unit * m.max().item())
        value, by_s, by_t = (x * kd_ratio * kd * m for x in terms)
    by_s, by_t = by_s / temperature, by_t / teacher_temperature
    ce, z = 1 - kd_ratio, float(o["z_loss"])  # type: ignore[arg-type]
    softmax = F.softmax(s, -1)
    value = value + ce * m_one + z * m_one**2
    hot = F.one_hot(label, e.vocab) + float(o["label_smoothing"]) / e.vocab  # type: ignore[arg-type]
    by_s = by_s + ce * (softmax * m_one + hot) + 2 * z * m_one * softmax * m_one
    few = K * unit * scale[..., None]
    # The oracle's own gradients (autograd in float64) have an error relative to the row's largest element.
    by_s, by_t = (x + 2**-50 / unit * x.amax(-1, keepdim=True) for x in (by_s, by_t))
    return (K_SUM / K * few * value)[..., 0], few * by_s, few * by_t


def last_rounding(e: Example, dtype: torch.dtype, grad: Tensor, scale: Tensor) -> Tensor:
    """Error of rounding a gradient to its dtype.

    In calls with float16 the gradient is first stored scaled to near 1, so a 16-bit one is rounded twice.
    """
    rounding = ROUNDING[dtype] * grad + SMALLEST[dtype]
    if torch.float16 in e.dtypes and dtype in (torch.float16, torch.bfloat16):
        rounding = 2 * rounding
    if dtype == torch.float16:
        o = e.options
        temperature = float(o["temperature"])  # type: ignore[arg-type]
        coldest = min(temperature, float(o["teacher_temperature"] or temperature))  # type: ignore[arg-type]
        # About the largest gradient of any divergence; the stored one is scaled so that this is near 2^10.
        largest = 1 + 20 * float(o["kd_ratio"]) / coldest * (temperature**2 if o["t_squared"] else 1.0)  # type: ignore[arg-type]
        rounding = rounding + 2**-34 * largest * scale.max()
    return rounding
