"""``token_logprobs``: log-probabilities and entropies of tokens from hidden states, without the logits."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fastkd.losses.linear import linear_kd_loss
from fastkd.teachers import HiddenTeacher


def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    ids: Tensor,
    *,
    bias: Tensor | None = None,
    logit_scale: float = 1.0,
    logit_softcap: float | None = None,
    vocab_size: int | None = None,
    ignore_index: int = -100,
    chunk_size: int | None = None,
    group: dist.ProcessGroup | None = None,
    backend: str | None = None,
    return_entropy: bool = False,
) -> Any:
    r"""The log-probability of each token, and the entropy of each distribution, without holding the logits.

    On-policy objectives need them of the student's own samples. The log-probability is
    $\log q_y = s_y - \log \sum_j e^{s_j}$ and the entropy $-\sum_j q_j \log q_j$, with the logits $s$ of
    ``hidden @ weight.T + bias`` (scaled, then capped). Both are differentiable in the hidden states, the
    weight and the bias. The head runs over a chunk of rows at a time, and again in the backward, as in
    :func:`fastkd.linear_kd_loss` with ``reduction="none"``; the entropy is a second pass of its own.

    Args:
        hidden: ``(..., H)``.
        weight: ``(V, H)``, of the same dtype.
        ids: ``(...)`` int64, aligned with the hidden states: the token that each of them predicts.
        bias: ``(V,)`` or None.
        logit_scale: factor on the logits; 1 / temperature gives the probabilities of tokens that were drawn
            at a temperature, where the head has no softcap.
        logit_softcap: ``c`` in ``c * tanh(logits / c)``, applied to the scaled logits; None for no cap.
        vocab_size: columns at or beyond it are padding, with probability 0; None for none.
        ignore_index: positions with this id give 0 and no gradient.
        chunk_size: tokens per chunk; see :func:`fastkd.linear_kd_loss`.
        group: processes that hold parts of the vocabulary; see :func:`fastkd.linear_kd_loss`.
        backend: ``"native"``, ``"triton"``, ``"reference"``, or None for the best that can run.
        return_entropy: return the entropies too.

    Returns:
        ``(...)`` log-probabilities in float32 (float64 for float64); with ``return_entropy`` a pair of these
        and of the entropies in nats. An entropy is right to within some $10^{-6} \log V$, so that of a nearly
        certain token has few digits.

    Raises:
        ValueError, TypeError, IndexError: as :func:`fastkd.linear_kd_loss`.
    """
    shared: dict[str, Any] = {
        "student_bias": bias,
        "logit_scale": logit_scale,
        "logit_softcap": logit_softcap,
        "vocab_size": vocab_size,
        "ignore_index": ignore_index,
        "chunk_size": chunk_size,
        "reduction": "none",
        "group": group,
        "backend": backend,
    }
    logprobs = -linear_kd_loss(hidden, weight, None, ids, kd_ratio=0.0, **shared)
    if not return_entropy:
        return logprobs
    # With a uniform p, the reverse KL is log V minus the entropy of q.
    uniform = HiddenTeacher(hidden.new_zeros(*hidden.shape[:-1], 1), weight.new_zeros(len(weight), 1))
    divergence = linear_kd_loss(hidden, weight, uniform, ids, divergence="reverse_kl", **shared)
    columns = _columns(weight, vocab_size, group)
    valid = (ids != ignore_index).to(divergence.dtype)
    return logprobs, math.log(columns) * valid - divergence


def _columns(weight: Tensor, vocab_size: int | None, group: dist.ProcessGroup | None) -> int:
    """The number of columns of the whole vocabulary that are no padding."""
    if vocab_size is not None:
        return vocab_size
    if group is None:
        return len(weight)
    total = torch.tensor(len(weight), device=weight.device)
    dist.all_reduce(total, group=group)
    return int(total)
