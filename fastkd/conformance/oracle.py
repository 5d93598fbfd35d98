"""The oracle: the loss written out from its definition in float64 and plain torch, with autograd's gradients.

It shares no formula with the backends, whose gradients are derived by hand. Both fastkd's own tests and the
conformance kit compare with it. Entries that are -inf on both sides add 0 to values and gradients, and
``0 * log 0`` is 0.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastkd.divergences import DIVERGENCES

INF = math.inf


class Sparse(NamedTuple):
    """A teacher that names ``K`` columns per token. The oracle accepts ``fastkd.SparseTeacher`` as well."""

    indices: Tensor
    logprobs: Tensor
    tail: str = "renormalize"


def _sum_of(weight: Tensor, log_ratio: Tensor) -> Tensor:
    """Sum of ``weight * log_ratio``, where ``0 * anything`` is 0 in the value and in the gradient."""
    present = weight != 0  # a NaN counts as present, so that it shows
    return torch.where(present, weight * torch.where(present, log_ratio, 0.0), 0.0).sum(-1)


def _log_sum(x: Tensor) -> Tensor:
    """Log-sum-exp over the last dimension; -inf without a gradient where every entry is -inf."""
    empty = (x == -INF).all(-1, keepdim=True)
    return torch.where(empty[..., 0], -INF, torch.logsumexp(torch.where(empty, 0.0, x), -1))


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return _sum_of(log_p.exp(), log_p - log_q)


def entropy(log_p: Tensor) -> Tensor:
    """The entropy of each row, in nats."""
    return -_sum_of(log_p.exp(), log_p)


def _mixture(log_x: Tensor, log_y: Tensor, share: float) -> Tensor:
    """Log of the mixture ``share x + (1 - share) y``."""
    if share == 0:
        return log_y
    neither = (log_x == -INF) & (log_y == -INF)
    log_x, log_y = torch.where(neither, 0.0, log_x), torch.where(neither, 0.0, log_y)
    mixed = torch.logaddexp(log_x + math.log(share), log_y + math.log(1 - share))
    return torch.where(neither, -INF, mixed)


def _powers(log_p: Tensor, log_q: Tensor, a: float, b: float) -> Tensor:
    """``a log p + b log q``, and -inf where p and q are both 0.

    An exponent may be negative, and an exponent of 0 drops its side.
    """
    neither = (log_p == -INF) & (log_q == -INF)
    log_p, log_q = torch.where(neither, 0.0, log_p), torch.where(neither, 0.0, log_q)
    exponent = (a * log_p if a else 0.0) + (b * log_q if b else 0.0)
    return torch.where(neither, -INF, exponent)


def _decoupled(log_p: Tensor, log_q: Tensor, beta: float, labels: Tensor) -> Tensor:
    at_label = F.one_hot(labels, log_p.shape[-1]).bool()

    def split(log_x: Tensor) -> tuple[Tensor, Tensor]:
        """The log-probabilities of the label and of the rest, and the rest normalised on its own."""
        rest = torch.where(at_label, -INF, log_x)
        total = _log_sum(rest)
        label = torch.where(at_label, log_x, 0.0).sum(-1)
        normaliser = torch.where(total == -INF, 0.0, total)[..., None]
        return torch.stack([label, total], -1), rest - normaliser

    (target_p, rest_p), (target_q, rest_q) = split(log_p), split(log_q)
    return _kl(target_p, target_q) + beta * _kl(rest_p, rest_q)


def divergence(
    name: str,
    log_p: Tensor,
    log_q: Tensor,
    beta: float | None = None,
    alpha: float | None = None,
    labels: Tensor | None = None,
) -> Tensor:
    """``D(p, q)`` of each row. Only ``decoupled`` needs ``labels``, one per row."""
    b = DIVERGENCES[name].default("beta") if beta is None else beta
    a = DIVERGENCES[name].default("alpha") if alpha is None else alpha
    p, q = log_p.exp(), log_q.exp()
    if name == "forward_kl":
        return _kl(log_p, log_q)
    if name == "reverse_kl":
        return _kl(log_q, log_p)
    if name == "jeffreys":
        return _kl(log_p, log_q) + _kl(log_q, log_p)
    if name == "jsd":
        if b in (0.0, 1.0):
            return divergence("forward_kl" if b == 0.0 else "reverse_kl", log_p, log_q)
        log_m = _mixture(log_p, log_q, b)
        return b * _kl(log_p, log_m) + (1 - b) * _kl(log_q, log_m)
    if name == "skew_forward_kl":
        return _kl(log_p, _mixture(log_p, log_q, b))
    if name == "skew_reverse_kl":
        return _kl(log_q, _mixture(log_q, log_p, b))
    if name == "tvd":
        return 0.5 * (p - q).abs().sum(-1)
    if name == "triangular":
        # The derivative divides by a square, which would be 0 for smaller sums. These do not count.
        both = torch.where(p + q > 1e-150, p + q, 1.0)
        return ((p - q) ** 2 / both).sum(-1)
    if name == "pearson_chi2":
        return _powers(log_p, log_q, 2, -1).exp().sum(-1) - 1
    if name == "hellinger":
        return 1 - _powers(log_p, log_q, 0.5, 0.5).exp().sum(-1)
    if name == "alpha":
        return (1 - _powers(log_p, log_q, a, 1 - a).exp().sum(-1)) / (a * (1 - a))
    if name == "renyi":
        return _log_sum(_powers(log_p, log_q, a, 1 - a)) / (a - 1)
    if name == "alpha_beta":
        cross = _powers(log_p, log_q, a, b).exp()
        of_p, of_q = _powers(log_p, log_q, a + b, 0).exp(), _powers(log_p, log_q, 0, a + b).exp()
        # 0 to a negative exponent is infinite; that term outgrows the others, so D is infinite.
        infinite = (cross == INF) | (of_p == INF) | (of_q == INF)
        terms = -1 / (a * b) * (cross - a / (a + b) * of_p - b / (a + b) * of_q)
        return torch.where(infinite, INF, terms).sum(-1)
    if name == "decoupled":
        assert labels is not None
        return _decoupled(log_p, log_q, b, labels)
    if name == "log_acceptance":
        return -_log_sum(torch.minimum(log_p, log_q))
    if name == "kl_tvd":
        apart = 0.5 * (p - q).abs().sum(-1)
        weight = torch.exp(-b * (1 - apart)).detach()
        return weight * _kl(log_p, log_q) + (1 - weight) * apart
    raise ValueError(name)


def over_vocabulary(name: str, beta: float | None, alpha: float | None) -> bool:
    """Whether a renormalised teacher is compared with the student's whole vocabulary."""
    a = DIVERGENCES[name].default("alpha") if alpha is None else alpha
    b = DIVERGENCES[name].default("beta") if beta is None else beta
    return DIVERGENCES[name].over_vocabulary(a, b)


def sparse_divergence(
    name: str,
    logits: Tensor,
    teacher: Sparse,
    beta: float | None = None,
    alpha: float | None = None,
    temperature: float = 1.0,
    teacher_temperature: float = 1.0,
) -> Tensor:
    """``D`` of each row, from ``(rows, columns)`` logits and a teacher that names ``K`` columns per row."""
    exists = teacher.logprobs > -INF
    columns = torch.where(exists, teacher.indices.long(), 0)
    forms_classes = teacher.tail == "bucket"
    log_student = F.log_softmax(logits / (1.0 if forms_classes else temperature), -1)
    log_q = torch.where(exists, log_student.gather(-1, columns), -INF)
    if teacher.tail == "renormalize":
        log_p = F.log_softmax(teacher.logprobs / teacher_temperature, -1)
        if over_vocabulary(name, beta, alpha):
            # Absent entries go to a column past the vocabulary; columns that are not named have p = 0.
            past = torch.where(exists, columns, logits.shape[-1])
            dense = logits.new_full((logits.shape[0], logits.shape[-1] + 1), -INF)
            dense = dense.scatter(-1, past, log_p)[:, :-1]
            return divergence(name, dense, log_student, beta, alpha)
        return divergence(name, log_p, log_q - _log_sum(log_q)[..., None], beta, alpha)
    if teacher.tail == "drop":
        assert name == "forward_kl" and temperature == teacher_temperature == 1
        return _kl(teacher.logprobs, log_q)
    named = torch.zeros_like(logits).scatter_add(-1, columns, exists.to(logits.dtype)) > 0
    other_q = _log_sum(torch.where(named, -INF, log_student))
    left = 1 - teacher.logprobs.exp().sum(-1)
    other_p = torch.where(left > 0, torch.log(torch.where(left > 0, left, 1.0)), -INF)
    log_p = torch.cat([teacher.logprobs, other_p[..., None]], -1)
    log_q = torch.cat([log_q, other_q[..., None]], -1)
    return divergence(
        name,
        F.log_softmax(log_p / teacher_temperature, -1),
        F.log_softmax(log_q / temperature, -1),
        beta,
        alpha,
    )


def token_losses(
    student: Tensor,
    teacher: Tensor | Sparse,
    labels: Tensor | None = None,
    *,
    kd_ratio: float = 1.0,
    divergence_name: str = "forward_kl",
    beta: float | None = None,
    alpha: float | None = None,
    temperature: float = 1.0,
    teacher_temperature: float | None = None,
    t_squared: bool = True,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    ignore_index: int = -100,
    vocab_size: int | None = None,
) -> Tensor:
    """Unweighted losses in the leading shape; ignored tokens have 0."""
    leading = student.shape[:-1]
    columns = vocab_size or student.shape[-1]
    s = student[..., :columns].reshape(-1, columns)
    rows = torch.arange(s.shape[0], device=s.device)
    if labels is not None:
        rows = (labels.reshape(-1) != ignore_index).nonzero().squeeze(-1)
        labels = labels.reshape(-1)[rows]
    s = s[rows]
    t_t = temperature if teacher_temperature is None else teacher_temperature
    loss = s.new_zeros(s.shape[0])
    if kd_ratio > 0:
        if isinstance(teacher, Tensor):
            t = teacher[..., :columns].reshape(-1, columns)[rows]
            log_p, log_q = F.log_softmax(t / t_t, -1), F.log_softmax(s / temperature, -1)
            kd = divergence(divergence_name, log_p, log_q, beta, alpha, labels)
        else:
            indices, logprobs = (
                x.reshape(-1, x.shape[-1])[rows] for x in (teacher.indices, teacher.logprobs)
            )
            sparse = Sparse(indices, logprobs, teacher.tail)
            kd = sparse_divergence(divergence_name, s, sparse, beta, alpha, temperature, t_t)
        loss = loss + kd_ratio * (temperature**2 if t_squared else 1) * kd
    if kd_ratio < 1:
        assert labels is not None
        nll = F.cross_entropy(s, labels, reduction="none")
        if label_smoothing:
            nll = (1 - label_smoothing) * nll - label_smoothing * F.log_softmax(s, -1).mean(-1)
        loss = loss + (1 - kd_ratio) * nll
    if z_loss:
        loss = loss + z_loss * torch.logsumexp(s, -1) ** 2
    return torch.zeros(leading.numel(), dtype=s.dtype, device=s.device).index_put((rows,), loss).view(leading)


def kd_loss(
    student: Tensor,
    teacher: Tensor | Sparse,
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


def metrics(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor | None = None,
    *,
    temperature: float = 1.0,
    teacher_temperature: float | None = None,
    t_squared: bool = True,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    vocab_size: int | None = None,
    **options: object,
) -> dict[str, Tensor]:
    """Means over the valid tokens in float64; the cross-entropy is NaN if the call has no labels."""
    columns = vocab_size or student.shape[-1]
    s, t = (x[..., :columns].reshape(-1, columns).double() for x in (student, teacher))
    valid = torch.ones(s.shape[0], dtype=torch.bool)
    if labels is not None:
        valid = labels.reshape(-1) != ignore_index
        labels = labels.reshape(-1)[valid]
    s, t = s[valid], t[valid]
    t_t = temperature if teacher_temperature is None else teacher_temperature
    log_p, log_q = F.log_softmax(t / t_t, -1), F.log_softmax(s / temperature, -1)
    nan = s.new_full((), math.nan)
    options.pop("kd_ratio", None)  # the metrics do not depend on it
    name = options.pop("divergence", "forward_kl")
    kd = divergence(name, log_p, log_q, labels=labels, **options)  # type: ignore[arg-type]
    ce = nan
    if labels is not None:
        ce = F.cross_entropy(s, labels, label_smoothing=label_smoothing)
    return {
        "kd": kd.mean() * (temperature**2 if t_squared else 1),
        "ce": ce,
        "student_entropy": entropy(log_q).mean(),
        "teacher_entropy": entropy(log_p).mean(),
        "agreement": (s.argmax(-1) == t.argmax(-1)).double().mean(),
        "num_valid": valid.sum(),
    }


def reference_gradients(
    student: Tensor, teacher: Tensor | Sparse, *args: object, **options: object
) -> tuple[Tensor, ...]:
    """The oracle's (loss, d loss / d student, d loss / d teacher) in float64.

    For a sparse teacher the last one is the gradient with respect to its ``logprobs``.
    """
    s = student.detach().double().requires_grad_()
    if isinstance(teacher, Tensor):
        t = teacher.detach().double().requires_grad_()
        loss = kd_loss(s, t, *args, **options)  # type: ignore[arg-type]
    else:
        t = teacher.logprobs.detach().double().requires_grad_()
        loss = kd_loss(s, Sparse(teacher.indices, t, teacher.tail), *args, **options)  # type: ignore[arg-type]
    by_s, by_t = torch.autograd.grad(loss.sum(), (s, t), allow_unused=True)
    return loss.detach(), by_s, torch.zeros_like(t) if by_t is None else by_t
