"""The divergences between a teacher's distribution p and a student's q.

Each is one :class:`fastkd.divergences.base.Divergence`: its parameters, its formula in plain torch, and the
properties that the kernels depend on. The kernels' formulas are in ``csrc/divergences`` and
``fastkd/backends/triton``.
"""

from fastkd.divergences.alpha_beta import ALPHA_BETA
from fastkd.divergences.base import Divergence, Pair, Result
from fastkd.divergences.decoupled import DECOUPLED
from fastkd.divergences.draft import KL_TVD, LOG_ACCEPTANCE
from fastkd.divergences.jsd import JSD
from fastkd.divergences.kl import FORWARD_KL, JEFFREYS, REVERSE_KL
from fastkd.divergences.powers import ALPHA, HELLINGER, PEARSON_CHI2, RENYI
from fastkd.divergences.skew import SKEW_FORWARD_KL, SKEW_REVERSE_KL
from fastkd.divergences.triangular import TRIANGULAR
from fastkd.divergences.tvd import TVD

__all__ = ["DIVERGENCES", "Divergence", "Pair", "Result"]

# In the order in which users see them listed.
DIVERGENCES: dict[str, Divergence] = {
    divergence.name: divergence
    for divergence in (
        *(FORWARD_KL, REVERSE_KL, JEFFREYS, JSD, SKEW_FORWARD_KL, SKEW_REVERSE_KL, TVD, TRIANGULAR),
        *(HELLINGER, PEARSON_CHI2, ALPHA, RENYI, ALPHA_BETA, DECOUPLED, LOG_ACCEPTANCE, KL_TVD),
    )
}
