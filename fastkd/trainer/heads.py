"""A model's linear output head, with which ``linear_kd_loss`` computes the loss without storing the logits.

The hidden states are the input of the model's head, so they include scalings before the head (T5).
Softcaps, scales and biases after the head are read from the model under the names that model families use,
and then checked against the model itself on a few tokens. A head that computes something else is thus
detected, and its loss is computed from the model's own logits instead of a silently different objective.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from fastkd import HiddenTeacher
from fastkd.trainer.modes import evaluating
from fastkd.trainer.views import NOTHING_MORE, View, Wanted

# A logit at which a softcap (30 in Gemma 2) is far from the identity.
_PROBE_LOGIT = 64.0


@dataclass(frozen=True)
class LinearHead:
    """``logits = softcap(logit_scale * linear(hidden) + bias)``, with the linear layer's own bias or a
    separate one.

    Attributes:
        linear: the model's own layer, so that its weight is always the current one.
        extra_bias: ``(V,)``, a bias that the model adds beside the layer's (BART, Marian).
    """

    linear: nn.Linear
    extra_bias: Tensor | None = None
    logit_scale: float = 1.0
    logit_softcap: float | None = None

    def factors(self, hidden: Tensor) -> HiddenTeacher:
        """The factors of the logits of ``hidden``, in the dtype in which autocast would multiply them.

        ``linear_kd_loss`` multiplies outside the operators that autocast covers, so the cast is made here.
        """
        dtype = hidden.dtype
        if torch.is_autocast_enabled(hidden.device.type):
            dtype = torch.get_autocast_dtype(hidden.device.type)
        bias: Tensor | None = self.linear.bias
        if self.extra_bias is not None:
            extra = self.extra_bias.to(hidden.device)
            bias = extra if bias is None else bias + extra
        return HiddenTeacher(
            hidden.to(dtype),
            self.linear.weight.to(dtype),
            None if bias is None else bias.to(dtype),
            self.logit_scale,
            self.logit_softcap,
        )


def run(model: Any, head: LinearHead | None, inputs: dict[str, Any], wanted: Wanted = NOTHING_MORE) -> View:
    """One forward of ``model``. It gives hidden states with ``head``, or logits if ``head`` is None."""
    embedded: list[Tensor] = []
    hooks = []
    options = dict(inputs)
    if wanted.hidden_states:
        options["output_hidden_states"] = True
    if wanted.attentions:
        options["output_attentions"] = True
    if wanted.embeddings:
        reader = model.get_encoder() if model.config.is_encoder_decoder else model
        hooks.append(reader.get_input_embeddings().register_forward_hook(_keep_embeddings(embedded)))
    fed: list[Tensor] = []
    if head is not None:
        hooks.append(head.linear.register_forward_pre_hook(_take_input(fed)))
    try:
        found = model(**options)
        distribution = found.logits if head is None else head.factors(fed[0])
    finally:
        for hook in hooks:
            hook.remove()
    side = "decoder_" if model.config.is_encoder_decoder else ""
    return View(
        distribution,
        tuple(found.get(f"{side}hidden_states") or ()),
        tuple(found.get(f"{side}attentions") or ()),
        embedded[0] if embedded else None,
    )


def _take_input(fed: list[Tensor]) -> Any:
    """A hook that keeps the head's input and gives the head no positions, so that the logits are not made."""

    def hook(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        fed.append(args[0])
        return (args[0][:, :0], *args[1:])

    return hook


def _keep_embeddings(embedded: list[Tensor]) -> Any:
    def hook(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        made = output if output.requires_grad else output.detach().requires_grad_()
        embedded.append(made)
        return made

    return hook


def multiply_out(distribution: Tensor | HiddenTeacher) -> Tensor:
    """``(..., V)`` logits."""
    if isinstance(distribution, Tensor):
        return distribution
    made = F.linear(distribution.hidden, distribution.weight, distribution.bias)
    if distribution.logit_scale != 1.0:
        made = made * distribution.logit_scale
    if distribution.logit_softcap is not None:
        made = distribution.logit_softcap * torch.tanh(made / distribution.logit_softcap)
    return made


def output_width(model: PreTrainedModel) -> int:
    """Columns of the model's logits, padding included."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if isinstance(head, nn.Linear):
        return head.out_features
    return model.config.get_text_config(decoder=True).vocab_size


def find_linear_head(model: PreTrainedModel) -> LinearHead | str:
    """The model's linear head, or the reason why it has none, as text."""
    head = declared_head(model)
    if isinstance(head, str) or _reproduces(model, head):
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
            factors = run(model, head, inputs).distribution
            assert isinstance(factors, HiddenTeacher)
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
