"""A model's output head, when it is linear: what ``linear_kd_loss`` needs to do without the logits.

Softcaps and scales are read from the model's config under the names that model families use, and then
checked against the model itself on a few tokens. So a head that does something else is found out and
goes through its logits, instead of being trained on a silently different objective.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from fastkd import HiddenTeacher

# Where a softcap (30 in Gemma 2) is far from the identity.
_PROBE_LOGIT = 64.0


@dataclass(frozen=True)
class LinearHead:
    """``logits = softcap(logit_scale * linear(hidden))`` with ``hidden = backbone(...)[0]``."""

    backbone: nn.Module
    linear: nn.Linear
    logit_scale: float = 1.0
    logit_softcap: float | None = None

    def hidden(self, inputs: dict[str, Any]) -> Tensor:
        """Last hidden states ``(batch, length, H)``."""
        return self.backbone(**inputs, use_cache=False)[0]

    def factors(self, hidden: Tensor) -> HiddenTeacher:
        """The logits of ``hidden``, not multiplied out, in the dtype autocast would multiply them in.

        ``linear_kd_loss`` multiplies outside the operators that autocast knows, so the cast is made here.
        """
        dtype = hidden.dtype
        if torch.is_autocast_enabled(hidden.device.type):
            dtype = torch.get_autocast_dtype(hidden.device.type)
        weight, bias = self.linear.weight, self.linear.bias
        return HiddenTeacher(
            hidden.to(dtype),
            weight.to(dtype),
            None if bias is None else bias.to(dtype),
            self.logit_scale,
            self.logit_softcap,
        )


def row_logits(logits: Tensor | HiddenTeacher, rows: slice) -> Tensor:
    """``(n, V)`` logits of a slice of the flattened tokens."""
    if isinstance(logits, Tensor):
        return logits.flatten(0, -2)[rows]
    made = F.linear(logits.hidden.flatten(0, -2)[rows], logits.weight, logits.bias)
    if logits.logit_scale != 1.0:
        made = made * logits.logit_scale
    if logits.logit_softcap is not None:
        made = logits.logit_softcap * torch.tanh(made / logits.logit_softcap)
    return made


def output_width(model: PreTrainedModel) -> int:
    """Columns of the model's logits, padding included."""
    head = model.get_output_embeddings()
    if isinstance(head, nn.Linear):
        return head.out_features
    return model.config.get_text_config(decoder=True).vocab_size


def find_linear_head(model: PreTrainedModel) -> LinearHead | str:
    """The model's linear head, or the reason why there is none, in words."""
    name = type(model).__name__
    linear = model.get_output_embeddings()
    # Exactly nn.Linear: adapters and quantised layers are subclasses that compute something else.
    if type(linear) is not nn.Linear:
        what = "missing" if linear is None else type(linear).__name__
        return f"the output head of {name} is {what}, not nn.Linear"
    backbone = getattr(model, model.base_model_prefix, None)
    if not isinstance(backbone, nn.Module) or backbone is model:
        return f"{name} has no separate backbone"
    config = model.config.get_text_config(decoder=True)
    head = LinearHead(
        backbone, linear, _logit_scale(config), getattr(config, "final_logit_softcapping", None)
    )
    return (
        head if _reproduces(model, head) else f"the logits of {name} are not those of its linear head alone"
    )


def _logit_scale(config: Any) -> float:
    scale = getattr(config, "logit_scale", None)  # Cohere multiplies
    if isinstance(scale, (int, float)):
        return float(scale)
    divisor = getattr(config, "logits_scaling", None)  # Granite divides
    return 1.0 / divisor if isinstance(divisor, (int, float)) and divisor else 1.0


@torch.no_grad()
def _reproduces(model: PreTrainedModel, head: LinearHead) -> bool:
    """Whether the head gives the model's logits on a few tokens, made large enough to show a cap."""
    inputs = {"input_ids": torch.arange(4, device=model.device)[None] % head.linear.out_features}
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        hidden = head.hidden(inputs)
        largest = head.linear(hidden).abs().max().clamp(min=1e-30)
        # A power of two, so that 16-bit hidden states stay what they are.
        lift = torch.exp2(torch.log2(_PROBE_LOGIT / largest.float()).floor()).to(hidden.dtype)
        hook = head.linear.register_forward_pre_hook(lambda _, args: (args[0] * lift,))
        try:
            expected = model(**inputs).logits.float()
        finally:
            hook.remove()
        found = row_logits(head.factors(hidden * lift), slice(None)).float()
    finally:
        for module in training:
            module.training = True
    if expected.numel() != found.numel():
        return False
    found = found.view_as(expected)
    tolerance = 1e-4 if hidden.dtype == torch.float32 else 2e-2
    return bool((expected - found).abs().max() <= tolerance * expected.abs().max().clamp(min=1e-30))
