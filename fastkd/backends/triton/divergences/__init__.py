"""The divergences as the Triton kernels compute them, one :class:`~.base.Formulas` each.

Their formulas in plain torch, and the properties that all kernels depend on, are in ``fastkd/divergences``.
"""

from __future__ import annotations

import triton
import triton.language as tl  # noqa: F401  # the interpreter looks for it among the globals

from fastkd.backends.triton.divergences.alpha_beta import ALPHA_BETA
from fastkd.backends.triton.divergences.base import Formulas
from fastkd.backends.triton.divergences.decoupled import DECOUPLED
from fastkd.backends.triton.divergences.draft import KL_TVD, LOG_ACCEPTANCE
from fastkd.backends.triton.divergences.jsd import JSD
from fastkd.backends.triton.divergences.kl import FORWARD_KL, JEFFREYS, REVERSE_KL
from fastkd.backends.triton.divergences.powers import ALPHA, HELLINGER, PEARSON_CHI2, RENYI
from fastkd.backends.triton.divergences.skew import SKEW_FORWARD_KL, SKEW_REVERSE_KL
from fastkd.backends.triton.divergences.triangular import TRIANGULAR
from fastkd.backends.triton.divergences.tvd import TVD
from fastkd.spec import LossSpec

__all__ = ["FORMULAS", "NOTHING", "OFF_SUPPORT", "Formulas", "formulas_of"]


@triton.jit
def _softmax(e, constants, row, scales):
    return e.q, 0.0 * e.q


# A call without a divergence.
NOTHING = Formulas(None, "none", weight="light")
# A call whose sparse teacher is evaluated in torch. The kernels only add a multiple of the student's
# probabilities to the gradient.
OFF_SUPPORT = Formulas(None, "off_support", gradients=_softmax, weight="light")
FORMULAS: dict[str, Formulas] = {
    formulas.name: formulas
    for formulas in (
        *(FORWARD_KL, REVERSE_KL, JEFFREYS, JSD, SKEW_FORWARD_KL, SKEW_REVERSE_KL, TVD, TRIANGULAR),
        *(HELLINGER, PEARSON_CHI2, ALPHA, RENYI, ALPHA_BETA, DECOUPLED, LOG_ACCEPTANCE, KL_TVD, OFF_SUPPORT),
    )
}


def formulas_of(spec: LossSpec) -> Formulas:
    """The object whose functions compute the call's divergence.

    Raises:
        NotImplementedError: this backend has no formulas of the divergence.
    """
    if spec.kd_weight == 0:
        return NOTHING
    if spec.divergence not in FORMULAS:
        raise NotImplementedError(
            f"the Triton backend cannot compute divergence={spec.divergence!r}: "
            "fastkd/backends/triton/divergences has no formulas of that name"
        )
    formulas = FORMULAS[spec.divergence]
    return formulas.at_beta.get(spec.beta, formulas)
