"""Finds a model's linear output head, from which ``linear_kd_loss`` computes the loss without the logits.

The hidden states are the input of the model's head, so they include scalings before the head (T5).
Softcaps, scales and biases after the head are read from the model under the names that model families use,
and then checked against the model itself on a few tokens. A head that computes something else is thus
detected, and its loss is computed from the model's own logits instead of a silently different objective.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from fastkd.corpora.contexts import evaluating
from fastkd.trainer.models import HiddenLogits, LinearHead, forward, multiply_out

# A logit at which a softcap (30 in Gemma 2) is far from the identity.
_PROBE_LOGIT = 64.0


def output_width(model: PreTrainedModel) -> int:
    """Columns of the model's logits, padding included."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if isinstance(head, nn.Linear):
        return head.out_features
    return model.config.get_text_config(decoder=True).vocab_size


def find_linear_head(model: PreTrainedModel) -> LinearHead | str:
    """The model's linear head, or the reason why it has none, as text."""
    head = declared_head(model)
    if isinstance(head, str):
        return head
    if head.linear.weight.is_meta or head.linear.weight.numel() == 0:
        return "the head's weight is not in this process's memory (ZeRO-3 shards it, or it is offloaded)"
    if _reproduces(model, head):
        return head
    return f"the logits of {_class_name(model)} are not those of its linear head alone"


def _class_name(model: Any) -> str:
    return type(getattr(model, "get_base_model", lambda: model)()).__name__


def declared_head(model: PreTrainedModel) -> LinearHead | str:
    """As :func:`find_linear_head`, but from attribute names alone: the model's tensors need not hold data."""
    linear = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    # Exactly nn.Linear: adapters and quantised layers are subclasses that compute something else.
    if type(linear) is not nn.Linear:
        what = "missing" if linear is None else type(linear).__name__
        return f"the output head of {_class_name(model)} is {what}, not nn.Linear"
    config = model.config.get_text_config(decoder=True)
    return LinearHead(
        linear,
        None if (bias := getattr(model, "final_logits_bias", None)) is None else bias.flatten(),
        _logit_scale(config),
        getattr(config, "final_logit_softcapping", None),
    )


def _logit_scale(config: Any) -> float:
    scale = getattr(config, "logit_scale", None)  # Cohere multiplies
    if isinstance(scale, (int, float)):
        return float(scale)
    divisor = getattr(config, "logits_scaling", None)  # Granite divides
    return 1.0 / divisor if isinstance(divisor, (int, float)) and divisor else 1.0


@torch.no_grad()
def _reproduces(model: PreTrainedModel, head: LinearHead) -> bool:
    """Whether the head gives the model's logits on a few tokens, scaled up so that a softcap would show."""
    ids = torch.arange(4, device=model.device)[None] % head.linear.out_features
    inputs = {"input_ids": ids}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids
    try:
        with evaluating(model):
            factors = forward(model, head, inputs).distribution
            assert isinstance(factors, HiddenLogits)
            hidden = factors.hidden
            largest = head.linear(hidden).abs().max().clamp(min=1e-30)
            # A power of two, so that scaling does not round 16-bit hidden states.
            lift = torch.exp2(torch.log2(_PROBE_LOGIT / largest.float()).floor()).to(hidden.dtype)
            hook = head.linear.register_forward_pre_hook(lambda _, args: (args[0] * lift,))
            try:
                expected = model(**inputs).logits.float()
            finally:
                hook.remove()
            found = multiply_out(head.factors(hidden * lift)).float()
    except (IndexError, TypeError):  # a head that is not called, or not with one tensor
        return False
    if expected.shape != found.shape:
        return False
    tolerance = 1e-4 if hidden.dtype == torch.float32 else 2e-2
    return bool((expected - found).abs().max() <= tolerance * expected.abs().max().clamp(min=1e-30))
