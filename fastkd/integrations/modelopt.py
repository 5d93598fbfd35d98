"""A criterion for the distillation of NVIDIA ModelOpt, equal to its ``LogitsDistillationLoss``."""

from __future__ import annotations

from torch import Tensor
from torch.nn.modules.loss import _Loss

from fastkd import kd_loss
from fastkd.integrations.common import refusal

REDUCTIONS = ("mean", "batchmean", "sum", "none")


class LogitsDistillationLoss(_Loss):
    """ModelOpt's ``modelopt.torch.distill.LogitsDistillationLoss`` (as of 0.47), computed by fastkd.

    The loss is ``T**2 KL(softmax(logits_t / T), softmax(logits_s / T))``. No gradient flows to the teacher.

    Args:
        temperature: ``T`` > 0.
        reduction: ``"mean"``, the default, divides the sum over all tokens by the number of *logits*, not of
            tokens, as ``F.kl_div`` does; ``"batchmean"`` divides it by ``logits_s.size(0)``; ``"sum"``
            divides by nothing; ``"none"`` gives one loss per token.

    Raises:
        Unsupported: another reduction.
    """

    def __init__(self, temperature: float = 1.0, reduction: str = "mean") -> None:
        super().__init__()
        if reduction not in REDUCTIONS:
            raise refusal("modelopt", f"reduction={reduction!r}", f"choose from {', '.join(REDUCTIONS)}")
        self._temperature, self._reduction = temperature, reduction

    def forward(self, logits_s: Tensor, logits_t: Tensor) -> Tensor:
        """The loss of logits ``(..., V)``: float32, or float64 if an input is; a scalar or ``(...)``."""
        items = {"mean": logits_s.numel(), "batchmean": logits_s.shape[0]}.get(self._reduction)
        reduction = self._reduction if items is None else "mean"
        temperature = self._temperature
        loss: Tensor = kd_loss(
            logits_s, logits_t.detach(), temperature=temperature, reduction=reduction, num_items=items
        )
        return loss
