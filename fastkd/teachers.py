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


TAILS = ("renormalize", "bucket", "drop")


@dataclass(frozen=True)
class SparseTeacher:
    """A teacher given by ``K`` columns per token, as a cache holds it.

    No ``(tokens, vocab)`` tensor is made of it. It takes ``divergence="forward_kl"`` with every tail, and
    ``"reverse_kl"`` and ``"jsd"`` with ``bucket`` and ``renormalize``.

    Args:
        indices: ``(..., K)`` int64 or int32, the leading shape of the student's logits; with ``group`` the
            columns of the whole vocabulary.
        logprobs: ``(..., K)``, float32, bfloat16, float16 or float64. An entry of -inf does not exist, and
            its index may be any: so tokens may have fewer than ``K`` entries.
        tail: what the teacher holds of all other columns.

            - ``"renormalize"``: nothing. The teacher is ``softmax(logprobs / T_t)`` over its entries.
              ``forward_kl`` compares it with the student's softmax over the whole vocabulary; ``reverse_kl``
              and ``jsd`` with the student renormalised over the same entries.
            - ``"bucket"``: the rest of the mass, as one more class on both sides; only at temperature 1. The
              rest's mass is 1 less a sum, so below 2**-24 it counts as 2**-24, on either side.
            - ``"drop"``: nothing, and the weights ``w = exp(logprobs)`` are taken as they are: the divergence
              is ``sum w (log w - log q)``, only at temperature 1. With the weights of random-sampling KD
              (Anshumann et al. 2025) its gradient is that of the whole teacher in expectation.

    An index out of range raises ``IndexError`` and a repeated one ``ValueError`` on a CPU; on a GPU either
    makes that token's loss NaN. A gradient flows to ``logprobs`` if they require one.
    """

    indices: Tensor
    logprobs: Tensor
    tail: str = "renormalize"
