"""The right answer to a call, in float64, by the definition that an adapter states."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastkd.conformance import oracle
from fastkd.conformance.adapter import Adapter, Call


@dataclass(frozen=True)
class Expected:
    """A loss in float64 with its graph, and the leaves that it depends on; all of them are on the CPU."""

    loss: Tensor
    student: Tensor
    teacher: Tensor | None


def expected(adapter: Adapter, call: Call) -> Expected:
    """The loss of a call. Its tensors are copied, so that changing them afterwards changes nothing here."""
    student = _leaf(call.student)
    teacher: Tensor | oracle.Sparse
    if isinstance(call.teacher, Tensor):
        teacher = dense = _leaf(call.teacher)
    else:
        indices, logprobs, tail = call.teacher
        dense, teacher = None, oracle.Sparse(indices.cpu(), logprobs.detach().cpu().double(), tail)
    labels = None if call.labels is None else call.labels.cpu().clone()
    losses = oracle.token_losses(
        *(student, teacher, labels),
        kd_ratio=call.kd_ratio,
        divergence_name=call.divergence,
        beta=call.beta,
        alpha=call.alpha,
        temperature=call.temperature,
        t_squared=t_squared(adapter, call),
        vocab_size=call.vocab_size,
    )
    valid = torch.ones(losses.shape, dtype=torch.bool) if labels is None else labels != -100
    if adapter.teacher_entropy:
        assert dense is not None
        log_p = F.log_softmax(dense[..., : call.vocab_size] / call.temperature, -1)
        losses = losses + torch.where(valid, call.kd_ratio * oracle.entropy(log_p), 0.0)
    weights = torch.ones_like(losses)
    if call.token_weights is not None:
        weights = call.token_weights.cpu().double()
    weights = torch.where(valid, weights, 0.0)
    return Expected(_reduced(adapter, call, losses * weights, weights), student, dense)


def t_squared(adapter: Adapter, call: Call) -> bool:
    return adapter.t_squared == "always" or (adapter.t_squared == "mixed" and call.kd_ratio < 1)


def _leaf(x: Tensor) -> Tensor:
    return x.detach().cpu().double().clone().requires_grad_()


def _reduced(adapter: Adapter, call: Call, losses: Tensor, weights: Tensor) -> Tensor:
    kind = adapter.reductions[call.reduction or adapter.reduction]
    if kind == "none":
        return losses
    columns = call.vocab_size or call.student.shape[-1]
    denominators = {
        "sum": 1.0,
        "valid tokens": float(weights.sum()),
        "tokens": losses.numel(),
        "sequences": len(losses),
        "valid elements": float(weights.sum()) * columns,
        "elements": losses.numel() * columns,
    }
    total = denominators[kind] if call.num_items is None else call.num_items
    return losses.sum() / total if total else losses.sum() * 0
