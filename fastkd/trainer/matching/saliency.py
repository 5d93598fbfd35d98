"""Saliency: how strongly a prediction depends on each input token, and how far two models differ in that.

Gradient knowledge distillation (Wang et al. 2022) aligns the gradients of the label's probability with
respect to the input embeddings. This module compares their norms, so that the widths may differ. With

    g_j = d(sum of the labels' log-probabilities) / d(input embedding of token j)      s_j = norm(g_j)

of the student and s'_j of the teacher, a sequence's distance is

    D = sum_j (s_j / norm(s) - s'_j / norm(s'))^2

from 0 (the same tokens matter to both, in the same proportions) to 2 (none in common). A batch's loss is the
sum of D over its sequences, each counted as many times as it has valid targets, because all losses of
``matching`` are sums over targets.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fastkd.corpora.tasks import IGNORE_INDEX
from fastkd.trainer.matching.features import widened
from fastkd.trainer.models import HiddenLogits, ModelOutput, multiply_out

# Added under the square root, so that a sequence whose gradients are all 0 gives 0 and not 0 / 0.
_TINY = 1e-30


def saliency(output: ModelOutput, targets: Tensor, vocab_size: int | None, create_graph: bool) -> Tensor:
    """``(batch, length)`` norms of the gradient with respect to each input embedding.

    It computes the logits of the valid targets in plain torch, because the fused loss has no second
    derivative.

    Args:
        output: must have ``embeddings``, and the graph from them to the distribution.
        targets: labels at the distribution's positions; for a classifier one per text.
        vocab_size: columns from this one on are ignored; None uses all.
        create_graph: whether autograd must be able to differentiate the result.
    """
    valid = targets != IGNORE_INDEX
    given = output.distribution
    assert output.embeddings is not None and isinstance(given, (Tensor, HiddenLogits))
    chosen = given[valid] if isinstance(given, Tensor) else replace(given, hidden=given.hidden[valid])
    scores = widened(multiply_out(chosen)[..., :vocab_size]).log_softmax(-1)
    total = scores.gather(-1, targets[valid][:, None]).sum()
    (gradient,) = torch.autograd.grad(total, output.embeddings, create_graph=create_graph)
    return torch.linalg.vector_norm(widened(gradient), dim=-1)


def saliency_loss(student: Tensor, teacher: Tensor, segments: Tensor, counts: Tensor) -> Tensor:
    """The batch's loss, as defined at the top of this file.

    Args:
        student, teacher: ``(batch, length)`` saliencies.
        segments: ``(batch, length)``, number of the sequence that a token belongs to, -1 for padding.
        counts: number of valid targets of each sequence.
    """
    real = segments >= 0
    sequence = segments[real]
    s, t = (_shares(values[real], sequence, len(counts)) for values in (student, teacher))
    distances = s.new_zeros(len(counts)).index_add(0, sequence, (s - t).square())
    return (distances * counts).sum()


def _shares(values: Tensor, sequence: Tensor, count: int) -> Tensor:
    """Each value divided by the norm of its sequence's values."""
    squares = values.new_zeros(count).index_add(0, sequence, values.square())
    return values / (squares + _TINY).sqrt()[sequence]
