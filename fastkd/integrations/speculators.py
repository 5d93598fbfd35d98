"""The losses of vLLM's Speculators for draft models, and ``use_fastkd()``, which puts them in place."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from fastkd import kd_loss
from fastkd.integrations.common import refusal

# Speculators raises the acceptance to this before it takes the logarithm.
LEAST_ACCEPTANCE = 1e-5


def _divergence(name: str, beta: float | None = None) -> Callable[[Tensor, Tensor], Tensor]:
    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        value: Tensor = kd_loss(logits, targets.detach(), divergence=name, beta=beta, reduction="none")
        return value

    return loss


def ce_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy ``(...)`` of draft logits ``(..., V)`` with the largest target logit as the label."""
    value: Tensor = kd_loss(logits, None, targets.argmax(-1), kd_ratio=0.0, reduction="none")
    return value


def neg_log_acceptance_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """``-log(max(sum min(p, q), 1e-5))``, ``(...)``, of draft logits and target logits ``(..., V)``."""
    return _divergence("log_acceptance")(logits, targets).clamp(max=-math.log(LEAST_ACCEPTANCE))


def lk_hybrid_loss(logits: Tensor, targets: Tensor, eta: float = 3.0) -> Tensor:
    """The hybrid of KL and total variation, ``(...)``, of draft logits and target logits ``(..., V)``."""
    return _divergence("kl_tvd", eta)(logits, targets)


# Speculators' names (as of 0.9). Each takes draft and target logits ``(..., V)`` and gives float32 ``(...)``;
# no gradient flows to the targets.
LOSSES: dict[str, Callable[..., Tensor]] = {
    "kl_div": _divergence("forward_kl"),
    "rkl": _divergence("reverse_kl"),
    "jsd": _divergence("jsd", 0.5),
    "ce": ce_loss,
    "tv": _divergence("tvd"),
    "nla": neg_log_acceptance_loss,
    "lk_hybrid": lk_hybrid_loss,
}


def resolve_loss_config(spec: str) -> dict[str, tuple[Callable[..., Tensor], float]]:
    """As ``speculators.losses.resolve_loss_config``, with fastkd's losses.

    Args:
        spec: a name, such as ``"kl_div"``, or JSON with weights, such as ``'{"ce": 0.1, "tv": 0.9}'``.

    Returns:
        The ``loss_config`` of Speculators' models: each name with its loss and weight.

    Raises:
        ValueError: Speculators does not understand ``spec``.
        Unsupported: a loss that fastkd does not have.
    """
    from speculators.losses import resolve_loss_config as theirs

    weights = {name: weight for name, (_, weight) in theirs(spec, "eager").items()}
    for name in weights:
        if name not in LOSSES:
            raise refusal("speculators", f"the loss {name!r}", f"choose from {', '.join(LOSSES)}")
    return {name: (LOSSES[name], weight) for name, weight in weights.items()}


def use_fastkd() -> None:
    """Let ``loss_implementation="fused"``, Speculators' default, mean fastkd in this process.

    Raises:
        Unsupported: this version of Speculators has other losses than those that fastkd has.
    """
    from speculators.losses import utils

    fused: dict[str, Any] | None = getattr(utils, "_FUSED_LOSS_FN_MAP", None)
    if fused is None or set(fused) != set(LOSSES):
        remedy = "pass a loss_config of fastkd.integrations.speculators.resolve_loss_config"
        raise refusal("speculators", "the losses of this version", remedy)
    fused.update(LOSSES)
