"""Total variation distance."""

from __future__ import annotations

import torch

from fastkd.divergences.arithmetic import difference
from fastkd.divergences.base import Divergence, Pair, Result, always


def tvd(pair: Pair) -> Result:
    p, q = pair.log_p.exp(), pair.log_q.exp()
    apart = difference(p, q, pair.log_ratio)
    sign = torch.where(apart.isnan(), apart, torch.sign(apart))  # torch.sign(NaN) is 0
    return Result(
        0.5 * pair.total(apart.abs()),
        0.5 * q * (sign - pair.total(sign * q)),
        -0.5 * p * (sign - pair.total(sign * p)),
    )


TVD = Divergence("tvd", tvd, sums=True, over_vocabulary=always)
