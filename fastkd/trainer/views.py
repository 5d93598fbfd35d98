"""One model's output for a batch: its distributions, and intermediate tensors that some losses compare."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fastkd import HiddenTeacher, SparseTeacher

Batch = dict[str, Any]
# Logits ``(..., V)``, hidden states with their head, or the few entries per position that a cache stores.
Distribution = Tensor | HiddenTeacher | SparseTeacher


@dataclass(frozen=True)
class Wanted:
    """The intermediate tensors of a model that a batch needs besides its distributions."""

    hidden_states: bool = False
    attentions: bool = False
    # The output of the input embeddings (the encoder's, if there is one), with respect to which saliency
    # differentiates.
    embeddings: bool = False


@dataclass(frozen=True)
class View:
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
    """

    distribution: Distribution
    hidden_states: tuple[Tensor, ...] = ()
    attentions: tuple[Tensor, ...] = ()
    embeddings: Tensor | None = None
    saliency: Tensor | None = None


NOTHING_MORE = Wanted()
