"""What a student can be distilled from besides a plain tensor of logits."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class HiddenTeacher:
    """A teacher given by its last hidden states and its output head.

    The teacher's logits are ``hidden @ weight.T + bias``; :func:`fastkd.linear_kd_loss` makes them a few
    rows at a time and never holds all of them.

    Args:
        hidden: ``(..., H_t)``, the leading shape of the student's hidden states.
        weight: ``(V_t, H_t)``, same dtype as ``hidden``.
        bias: ``(V_t,)`` or None.
        logit_scale: factor on the logits (after the bias).
        logit_softcap: ``c`` of ``c * tanh(logits / c)``, applied after the scale; None for none.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None
    logit_scale: float = 1.0
    logit_softcap: float | None = None
