"""Plain torch: the test oracle, the benchmark's baseline, the fallback for every other device."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastkd.backends.base import Backend
from fastkd.spec import LossSpec


def _times(weight: Tensor, x: Tensor) -> Tensor:
    """``weight * x`` with ``0 * anything = 0``, the convention of every divergence."""
    return torch.where(weight == 0, torch.zeros_like(x), weight * x)


def _log_mixture_ratio(share: float, log_ratio: Tensor) -> Tensor:
    """``log((1 - share) + share * exp(log_ratio))``: a mixture relative to one of its parts."""
    # Two forms, so that neither a large ratio overflows nor a ratio near 1 loses digits.
    small = torch.log1p(share * torch.expm1(log_ratio.clamp(max=0)))
    # exp(log_ratio) * (share + (1 - share) * exp(-log_ratio)) for ratios above 1
    large = log_ratio + torch.log1p((1 - share) * torch.expm1(-log_ratio.clamp(min=0)))
    return torch.where(log_ratio > 0, large, small)


def _difference(p: Tensor, q: Tensor, log_ratio: Tensor) -> Tensor:
    """``q - p``, to full relative accuracy also where the two are nearly equal."""
    return torch.where(log_ratio > 0, p * torch.expm1(-log_ratio), -q * torch.expm1(log_ratio))


def _kl(p: Tensor, q: Tensor, log_ratio: Tensor) -> Tensor:
    """sum p (log p - log q), with the terms ``q - p``, whose sum is 0, added.

    Each term is then of second order in a small ratio, and so is the effect of an error in the ratios.
    """
    return (_times(p, log_ratio) + _difference(p, q, log_ratio)).sum(-1, keepdim=True)


# Each returns (D, dD/d(s/T), dD/d(t/T_t)) from log p, log q of shape (rows, vocab) and
# log_ratio = log p - log q, which the caller forms from the logits' difference.


def forward_kl(log_p: Tensor, log_q: Tensor, log_ratio: Tensor, beta: float) -> tuple[Tensor, Tensor, Tensor]:
    p, q = log_p.exp(), log_q.exp()
    value = _kl(p, q, log_ratio)
    return value, _difference(p, q, log_ratio), _times(p, log_ratio - value)


def reverse_kl(log_p: Tensor, log_q: Tensor, log_ratio: Tensor, beta: float) -> tuple[Tensor, Tensor, Tensor]:
    p, q = log_p.exp(), log_q.exp()
    value = _kl(q, p, -log_ratio)
    return value, _times(q, -log_ratio - value), -_difference(p, q, log_ratio)


def jsd(log_p: Tensor, log_q: Tensor, log_ratio: Tensor, beta: float) -> tuple[Tensor, Tensor, Tensor]:
    p, q = log_p.exp(), log_q.exp()
    p_over_m = -_log_mixture_ratio(1 - beta, -log_ratio)  # log p - log m
    q_over_m = -_log_mixture_ratio(beta, log_ratio)  # log q - log m
    kl_p = _times(p, p_over_m).sum(-1, keepdim=True)
    kl_q = _times(q, q_over_m).sum(-1, keepdim=True)
    value = beta * kl_p + (1 - beta) * kl_q
    return value, (1 - beta) * _times(q, q_over_m - kl_q), beta * _times(p, p_over_m - kl_p)


Formula = Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor, Tensor]]
FORMULAS: dict[str, Formula] = {"forward_kl": forward_kl, "reverse_kl": reverse_kl, "jsd": jsd}


class ReferenceBackend(Backend):
    """Every formula written out over whole ``(rows, vocab)`` tensors."""

    name = "reference"

    def missing(self, device: torch.device, dtype: torch.dtype | None = None) -> str | None:
        return None

    def dense_rows(
        self,
        student: Tensor,
        teacher: Tensor,
        labels: Tensor | None,
        loss_scale: Tensor,
        grad_scale: Tensor,
        spec: LossSpec,
        row_loss: Tensor,
        grad_student: Tensor | None,
        grad_teacher: Tensor | None,
    ) -> None:
        compute = loss_scale.dtype
        rows, vocab = row_loss.numel(), spec.vocab_size
        read = (loss_scale != 0) | (grad_scale != 0)
        if labels is not None:
            read = read & (labels != spec.ignore_index)

        def rows_of(x: Tensor) -> Tensor:
            x = x[..., :vocab].reshape(rows, vocab).to(compute)
            return torch.where(read[:, None], x, torch.zeros_like(x))

        s = rows_of(student)
        loss = torch.zeros(rows, dtype=compute, device=s.device)
        ds, dt = torch.zeros_like(s), None
        if spec.kd_weight != 0:
            t = rows_of(teacher)
            value, by_s, by_t = self._divergence(s, t, spec)
            loss = loss + spec.kd_weight * value
            ds = ds + spec.kd_weight / spec.temperature * by_s
            dt = spec.kd_weight / spec.teacher_temperature * by_t
        if spec.ce_weight != 0 or spec.z_loss != 0:
            value, by_s = self._cross_entropy(s, labels, spec)
            loss = loss + value
            ds = ds + by_s

        out_of_range = None
        if labels is not None:
            out_of_range = read & ((labels < 0) | (labels >= vocab))
            loss = loss.masked_fill(out_of_range, float("nan"))
        row_loss.copy_(torch.where(read, loss_scale * loss, torch.zeros_like(loss)))
        for out, grad in ((grad_student, ds), (grad_teacher, dt)):
            if out is None:
                continue
            out.zero_()
            if grad is None:
                continue
            grad = torch.where(read[:, None], grad_scale[:, None] * grad, torch.zeros_like(grad))
            if out_of_range is not None:
                grad = grad.masked_fill(out_of_range[:, None], float("nan"))
            out[..., :vocab] = grad.view(*out.shape[:2], vocab).to(out.dtype)

    @staticmethod
    def _divergence(s: Tensor, t: Tensor, spec: LossSpec) -> tuple[Tensor, Tensor, Tensor]:
        y, x = s / spec.temperature, t / spec.teacher_temperature
        lse_y, lse_x = torch.logsumexp(y, -1, keepdim=True), torch.logsumexp(x, -1, keepdim=True)
        log_q, log_p = y - lse_y, x - lse_x
        # From the logits' difference: the rounding of the two logarithms would drown a small ratio.
        # Entries that are -inf on both sides do not exist.
        log_ratio = ((x - y) - (lse_x - lse_y)).masked_fill((x == y) & torch.isinf(x), 0.0)
        value, by_s, by_t = FORMULAS[spec.divergence](log_p, log_q, log_ratio, spec.beta)
        return value.squeeze(-1), by_s, by_t

    @staticmethod
    def _cross_entropy(s: Tensor, labels: Tensor | None, spec: LossSpec) -> tuple[Tensor, Tensor]:
        lse = torch.logsumexp(s, -1, keepdim=True)
        softmax = torch.exp(s - lse)
        value = spec.z_loss * lse.square()
        grad = 2 * spec.z_loss * lse * softmax
        if spec.ce_weight != 0 and labels is not None:
            index = labels.clamp(0, spec.vocab_size - 1)[:, None]
            e = spec.label_smoothing
            nll = lse - s.gather(-1, index)
            if e:
                nll = (1 - e) * nll + e * (lse - s.mean(-1, keepdim=True))
            value = value + spec.ce_weight * nll
            hot = torch.zeros_like(s).scatter_(-1, index, 1 - e) + e / spec.vocab_size
            grad = grad + spec.ce_weight * (softmax - hot)
        return value.squeeze(-1), grad

    def scale_rows(self, grad: Tensor, factor: Tensor, out: Tensor) -> None:
        out.copy_(grad.to(factor.dtype) * factor[:, None])
