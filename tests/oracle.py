"""The loss as the definition states it: float64, plain torch, gradients by autograd."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def _sum_of(weight: Tensor, log_ratio: Tensor) -> Tensor:
    """sum weight * log_ratio with 0 * anything = 0, also in the gradient."""
    present = weight > 0
    return torch.where(present, weight * torch.where(present, log_ratio, 0.0), 0.0).sum(-1)


def divergence(name: str, log_p: Tensor, log_q: Tensor, beta: float | None = None) -> Tensor:
    p, q = log_p.exp(), log_q.exp()
    if name == "jsd":
        b = 0.5 if beta is None else beta
        if b in (0.0, 1.0):
            return divergence("forward_kl" if b == 0.0 else "reverse_kl", log_p, log_q)
        log_m = torch.logaddexp(log_p + math.log(b), log_q + math.log(1 - b))
        return b * _sum_of(p, log_p - log_m) + (1 - b) * _sum_of(q, log_q - log_m)
    if name == "forward_kl":
        return _sum_of(p, log_p - log_q)
    if name == "reverse_kl":
        return _sum_of(q, log_q - log_p)
    raise ValueError(name)


def token_losses(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor | None = None,
    *,
    kd_ratio: float = 1.0,
    divergence_name: str = "forward_kl",
    beta: float | None = None,
    temperature: float = 1.0,
    teacher_temperature: float | None = None,
    t_squared: bool = True,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    ignore_index: int = -100,
    vocab_size: int | None = None,
) -> Tensor:
    """Unweighted losses in the leading shape, 0 for ignored tokens."""
    leading = student.shape[:-1]
    columns = vocab_size or student.shape[-1]
    s, t = student[..., :columns].reshape(-1, columns), teacher[..., :columns].reshape(-1, columns)
    rows = torch.arange(s.shape[0], device=s.device)
    if labels is not None:
        rows = (labels.reshape(-1) != ignore_index).nonzero().squeeze(-1)
        labels = labels.reshape(-1)[rows]
    s, t = s[rows], t[rows]
    log_q = F.log_softmax(s / temperature, -1)
    log_p = F.log_softmax(t / (teacher_temperature or temperature), -1)
    kd = divergence(divergence_name, log_p, log_q, beta) * (temperature**2 if t_squared else 1)
    loss = kd_ratio * kd
    if kd_ratio < 1:
        nll = F.cross_entropy(s, labels, reduction="none")
        if label_smoothing:
            nll = (1 - label_smoothing) * nll - label_smoothing * F.log_softmax(s, -1).mean(-1)
        loss = loss + (1 - kd_ratio) * nll
    if z_loss:
        loss = loss + z_loss * torch.logsumexp(s, -1) ** 2
    return torch.zeros(leading.numel(), dtype=s.dtype, device=s.device).index_put((rows,), loss).view(leading)


def kd_loss(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor | None = None,
    *,
    reduction: str = "mean",
    num_items: float | None = None,
    token_weights: Tensor | None = None,
    ignore_index: int = -100,
    **options: object,
) -> Tensor:
    options["divergence_name"] = options.pop("divergence", "forward_kl")
    losses = token_losses(student, teacher, labels, ignore_index=ignore_index, **options)  # type: ignore[arg-type]
    weights = torch.ones_like(losses) if token_weights is None else token_weights.to(losses.dtype)
    if labels is not None:
        weights = torch.where(labels != ignore_index, weights, 0.0)
    weighted = weights * losses
    if reduction == "none":
        return weighted
    if reduction == "sum":
        return weighted.sum()
    if reduction == "batchmean":
        return weighted.sum() / (student.shape[0] if student.dim() > 1 else 1)
    total = weights.sum() if num_items is None else num_items
    return weighted.sum() / total if total != 0 else weighted.sum() * 0


def reference_gradients(
    student: Tensor, teacher: Tensor, *args: object, **options: object
) -> tuple[Tensor, ...]:
    """(loss, d loss / d student, d loss / d teacher) of the oracle, in float64."""
    s = student.detach().double().requires_grad_()
    t = teacher.detach().double().requires_grad_()
    loss = kd_loss(s, t, *args, **options)  # type: ignore[arg-type]
    by_s, by_t = torch.autograd.grad(loss.sum(), (s, t), allow_unused=True)
    return loss.detach(), by_s, torch.zeros_like(t) if by_t is None else by_t
