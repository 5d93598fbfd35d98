"""The losses of a mixture of experts that keep its router from sending every token to the same experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class RouterLoss:
    """One loss of a model's routers.

    Attributes:
        value: the mean over the tokens of the batch.
        weight: its factor in the loss, from the model's config.
    """

    value: Tensor
    weight: float


# Each loss: the names of its parts in a model's output (an encoder-decoder has two), and of its weight.
_LOSSES = {
    "aux_loss": (
        ("aux_loss", "encoder_aux_loss", "decoder_aux_loss"),
        ("router_aux_loss_coef", "aux_loss_coef"),
    ),
    "router_z_loss": (("encoder_z_loss", "decoder_z_loss"), ("router_z_loss_coef",)),
}


def router_losses(model: Any, output: Any) -> dict[str, RouterLoss]:
    """The losses in a model's output, by name. They are there if its config sets ``output_router_logits``.

    ``aux_loss`` is the load-balancing loss (Fedus et al. 2021), ``router_z_loss`` keeps router logits small.
    """
    found = {}
    for name, (parts, weights) in _LOSSES.items():
        values = [output.get(part) for part in parts]
        tensors = [value for value in values if isinstance(value, Tensor)]  # 0 where no layer has experts
        weight = _weight(model, weights)
        if tensors and weight:
            found[name] = RouterLoss(sum(tensors[1:], tensors[0]), weight)
    return found


def _weight(model: Any, names: tuple[str, ...]) -> float:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    for source in (base, base.config.get_text_config(decoder=True), base.config):
        for name in names:
            value = getattr(source, name, None)
            if isinstance(value, (int, float)):
                return float(value)
    return 0.0
