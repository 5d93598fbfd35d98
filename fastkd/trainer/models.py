"""One model's forward, and its output: distributions, and intermediate tensors that some losses compare."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastkd import HiddenTeacher, SparseTeacher
from fastkd.corpora.labels import MULTI_LABEL
from fastkd.trainer.routers import RouterLoss, router_losses

# Hidden states and the head that turns them into logits. The class is named after the side on which a caller
# of the losses meets it; in the trainer, a student's output has the same form.
HiddenLogits = HiddenTeacher
# Logits ``(..., V)``, hidden states with their head, or the few entries per position that a cache stores.
Distribution = Tensor | HiddenLogits | SparseTeacher

AnyDistribution = TypeVar("AnyDistribution", bound=Distribution)


@dataclass(frozen=True)
class Requested:
    """The intermediate tensors of a model that a batch needs besides its distributions."""

    hidden_states: bool = False
    attentions: bool = False
    # The output of the input embeddings (the encoder's, if there is one), with respect to which saliency
    # differentiates.
    embeddings: bool = False


NOTHING_MORE = Requested()


@dataclass(frozen=True)
class ModelOutput:
    """One model's output for a batch.

    Attributes:
        distribution: one distribution at every position of the batch's targets.
        hidden_states: the embeddings and each layer's output, ``(batch, length, H)``; the decoder's, in an
            encoder-decoder. Empty unless requested.
        attentions: each layer's attention weights ``(batch, heads, length, length)``. Empty unless requested.
        embeddings: ``(batch, length, H)`` input embeddings; the encoder's, in an encoder-decoder. None unless
            requested.
        saliency: ``(batch, length)``, one value per input token. None except for the teacher, where
            :meth:`Matching.prepare` computes it.
        router_losses: those of a mixture of experts, by name.
    """

    distribution: Distribution
    hidden_states: tuple[Tensor, ...] = ()
    attentions: tuple[Tensor, ...] = ()
    embeddings: Tensor | None = None
    saliency: Tensor | None = None
    router_losses: Mapping[str, RouterLoss] = field(default_factory=dict)


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

    def factors(self, hidden: Tensor) -> HiddenLogits:
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
        return HiddenLogits(
            hidden.to(dtype),
            self.linear.weight.to(dtype),
            None if bias is None else bias.to(dtype),
            self.logit_scale,
            self.logit_softcap,
        )


def forward(
    model: Any, head: LinearHead | None, inputs: dict[str, Any], requested: Requested = NOTHING_MORE
) -> ModelOutput:
    """One forward of ``model``. It gives hidden states with ``head``, or logits if ``head`` is None; for a
    multi-label model, the logits of :func:`two_classes`.
    """
    embedded: list[Tensor] = []
    hooks = []
    options = dict(inputs)
    if requested.hidden_states:
        options["output_hidden_states"] = True
    if requested.attentions:
        options["output_attentions"] = True
    if requested.embeddings:
        reader = model.get_encoder() if model.config.is_encoder_decoder else model
        hooks.append(reader.get_input_embeddings().register_forward_hook(_keep_embeddings(embedded)))
    fed: list[Tensor] = []
    if head is not None:
        hooks.append(head.linear.register_forward_pre_hook(_take_input(fed)))
    try:
        found = model(**options)
        distribution = found.logits if head is None else head.factors(fed[0])
        if getattr(model.config, "problem_type", None) == MULTI_LABEL:
            distribution = two_classes(found.logits)
    finally:
        for hook in hooks:
            hook.remove()
    side = "decoder_" if model.config.is_encoder_decoder else ""
    return ModelOutput(
        distribution,
        tuple(found.get(f"{side}hidden_states") or ()),
        tuple(found.get(f"{side}attentions") or ()),
        embedded[0] if embedded else None,
        router_losses=router_losses(model, found),
    )


def two_classes(logits: Tensor) -> Tensor:
    """``(..., C, 2)`` logits of C distributions over two classes, without and with the label, from
    ``(..., C)`` logits of a multi-label model: ``softmax([0, z]) = [1 - sigmoid(z), sigmoid(z)]``.
    """
    return torch.stack([torch.zeros_like(logits), logits], -1)


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


def multiply_out(distribution: Tensor | HiddenLogits) -> Tensor:
    """``(..., V)`` logits."""
    if isinstance(distribution, Tensor):
        return distribution
    made = F.linear(distribution.hidden, distribution.weight, distribution.bias)
    if distribution.logit_scale != 1.0:
        made = made * distribution.logit_scale
    if distribution.logit_softcap is not None:
        made = distribution.logit_softcap * torch.tanh(made / distribution.logit_softcap)
    return made


def known_logits(given: Distribution | None, like: Tensor | HiddenLogits) -> Tensor | None:
    """``(..., V)`` logits of a teacher; -inf for the columns that a cache does not list. None for a cache of
    draws, which does not know the likeliest column.

    Args:
        given: the teacher's distribution, if there is one.
        like: a student's distribution, which has as many columns.
    """
    if not isinstance(given, SparseTeacher):
        return None if given is None else multiply_out(given)
    if given.tail == "drop":
        return None
    columns = like.shape[-1] if isinstance(like, Tensor) else like.weight.shape[0]
    made = given.logprobs.new_full((*given.indices.shape[:-1], columns), -math.inf, dtype=torch.float32)
    # An entry of -inf only fills up the list, and may name a column that another entry names too.
    return made.scatter_reduce_(-1, given.indices.long(), given.logprobs.float(), "amax")


def distributions_of(given: Distribution, rows: Tensor) -> Tensor | HiddenLogits:
    """The distributions of some rows of a batch."""
    if isinstance(given, HiddenLogits):
        return replace(given, hidden=given.hidden[rows])
    assert isinstance(given, Tensor)
    return given[rows]


def positions_of(given: Tensor | HiddenLogits, chosen: Tensor) -> Tensor | HiddenLogits:
    """The distributions of some positions, ``(n, ...)``.

    Args:
        chosen: ``(n,)`` int64, their numbers in the flattened batch.
    """
    if isinstance(given, HiddenLogits):
        return replace(given, hidden=given.hidden.flatten(0, 1).index_select(0, chosen))
    return given.flatten(0, 1).index_select(0, chosen)


def detach(given: AnyDistribution) -> AnyDistribution:
    """The same distribution without its graph. Entries from a cache have none."""
    made: Any = given
    if isinstance(given, Tensor):
        made = given.detach()
    elif isinstance(given, HiddenLogits):
        bias = None if given.bias is None else given.bias.detach()
        made = replace(given, hidden=given.hidden.detach(), weight=given.weight.detach(), bias=bias)
    return made
