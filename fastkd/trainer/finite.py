"""Whether a run still computes with numbers: weights that are not finite are an error, not a result."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fastkd.errors import Diverged

logger = logging.getLogger(__name__)


class FiniteWatch:
    """Remembers whether a loss was not finite, without waiting for the device, and examines the weights."""

    def __init__(self) -> None:
        self._suspect: Tensor | None = None
        self._warned = False

    def saw(self, loss: Tensor) -> None:
        """Remember a loss."""
        suspect = ~torch.isfinite(loss.detach())
        self._suspect = suspect if self._suspect is None else self._suspect | suspect

    def examine(self, trainer: Any) -> None:
        """Examine the weights, if a loss since the last call was not finite on any process.

        All processes must call this together, as they log together.

        Raises:
            Diverged: weights that are not finite.
        """
        if self._suspect is None:
            return
        suspect, self._suspect = _anywhere(self._suspect, trainer), None
        if not suspect:
            return
        require_finite_weights(trainer)
        if not self._warned:
            self._warned = True
            logger.warning(
                "a loss up to step %d was not a finite number; the weights still are",
                trainer.state.global_step,
            )


def require_finite_weights(trainer: Any) -> None:
    """Raise :class:`Diverged` if a trained weight is not finite. All processes must call this together."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    if not _anywhere(_any_not_finite(model.parameters(), trainer.args.device), trainer):
        return
    args = trainer.args
    raise Diverged(
        f"the student's weights are not finite numbers after step {trainer.state.global_step}: the run "
        f"diverged, and its weights are not saved; lower learning_rate ({args.learning_rate:g}), set "
        f"warmup_steps, or max_grad_norm ({args.max_grad_norm:g}, 0 clips nothing)"
    )


def _any_not_finite(parameters: Iterable[nn.Parameter], device: torch.device) -> Tensor:
    found = torch.zeros((), dtype=torch.bool, device=device)
    for parameter in parameters:
        if parameter.requires_grad and parameter.is_floating_point():
            # The part that this process holds: FSDP has it in a DTensor, ZeRO-3 beside an empty parameter.
            mine: Any = getattr(parameter, "ds_tensor", parameter)
            mine = mine.to_local() if hasattr(mine, "to_local") else mine
            found |= ~torch.isfinite(mine.detach()).all().to(device)
    return found


def _anywhere(found: Tensor, trainer: Any) -> bool:
    if trainer.args.world_size > 1:
        found = trainer.accelerator.reduce(found.float(), reduction="sum")
    return bool(found.item())
