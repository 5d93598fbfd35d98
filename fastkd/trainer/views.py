"""What one model says about a batch: its distributions, and the insides that some losses look at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fastkd import HiddenTeacher, SparseTeacher

Batch = dict[str, Any]
# Logits ``(..., V)``, hidden states with their head, or the few entries that a cache holds.
Distribution = Tensor | HiddenTeacher | SparseTeacher


@dataclass(frozen=True)
class Wanted:
    """Which insides of a model a batch needs beside its distributions."""

    hidden_states: bool = False
    attentions: bool = False
    # The output of the input embeddings (of the encoder where there is one), to be differentiated by.
    embeddings: bool = False


@dataclass(frozen=True)
class View:
    """One model's answer to a batch.

    Attributes:
        distribution: at every position of the batch's targets.
        hidden_states: the embeddings and each layer's output, ``(batch, length, H)``; of the decoder where
            there is one. Empty unless wanted.
        attentions: each layer's weights ``(batch, heads, length, length)``. Empty unless wanted.
        embeddings: ``(batch, length, H)`` input embeddings, of the encoder where there is one. None unless
            wanted.
        saliency: ``(batch, length)``, of each input token. None until :class:`Matching` has computed it.
    """

    distribution: Distribution
    hidden_states: tuple[Tensor, ...] = ()
    attentions: tuple[Tensor, ...] = ()
    embeddings: Tensor | None = None
    saliency: Tensor | None = None


NOTHING_MORE = Wanted()
