"""The generalised Jensen-Shannon divergence (GKD, Agarwal et al. 2024)."""

from __future__ import annotations

from fastkd.divergences.arithmetic import log_mixture_ratio, times
from fastkd.divergences.base import Divergence, Pair, Parameter, Result


def jsd(pair: Pair) -> Result:
    beta = pair.beta
    p, q = pair.log_p.exp(), pair.log_q.exp()
    p_over_m = -log_mixture_ratio(1 - beta, -pair.log_ratio)  # log p - log m
    q_over_m = -log_mixture_ratio(beta, pair.log_ratio)  # log q - log m
    kl_p, kl_q = pair.total(times(p, p_over_m)), pair.total(times(q, q_over_m))
    return Result(
        beta * kl_p + (1 - beta) * kl_q,
        (1 - beta) * times(q, q_over_m - kl_q),
        beta * times(p, p_over_m - kl_p),
    )


JSD = Divergence(
    "jsd",
    jsd,
    parameters={"beta": Parameter(0.5, 0.0, 1.0)},
    # The same meaning as in TRL; the formula itself tends to 0 there.
    limits={0.0: "forward_kl", 1.0: "reverse_kl"},
    sums=True,
)
