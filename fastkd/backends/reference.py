"""The backend in plain torch: the fallback on every other device, and in float64 a reference for tests."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastkd.backends.base import Call, SparseRows
from fastkd.backends.kernels import KernelBackend, Phase
from fastkd.backends.record import COLUMNS
from fastkd.divergences import DIVERGENCES, Pair, Result
from fastkd.spec import METRICS


class _Rows:
    """The rows of a call as ``(rows, vocab)`` in the arithmetic's dtype; rows that are not read are 0."""

    def __init__(self, call: Call) -> None:
        self.call, self.spec, self.shards = call, call.spec, call.shards
        self.read = call.read
        self.s = self.of(call.student)
        self.at_label = torch.zeros_like(self.s, dtype=torch.bool)
        if call.labels is not None:
            label_column = call.labels[:, None]
            self.at_label = torch.arange(self.spec.vocab_size, device=self.s.device) == label_column
        self.columns = self.total(torch.ones_like(self.s))

    def of(self, x: Tensor) -> Tensor:
        shape = (self.call.row_loss.numel(), self.spec.vocab_size)
        x = x[..., : self.spec.vocab_size].reshape(shape).to(self.call.loss_scale.dtype)
        return torch.where(self.read[:, None], x, torch.zeros_like(x))

    def pair(self, log_p: Tensor, log_q: Tensor, log_ratio: Tensor) -> Pair:
        return Pair(log_p, log_q, log_ratio, self.spec.alpha, self.spec.beta, self.at_label, self.shards)

    def total(self, x: Tensor) -> Tensor:
        return self.pair(x, x, x).total(x)

    def log_total(self, x: Tensor) -> Tensor:
        return self.pair(x, x, x).log_total(x)

    def top(self, x: Tensor) -> Tensor:
        """The row maximum over all shards, ``(rows, 1)``; 0 where that is infinite."""
        top = torch.cat([x, x.new_full((x.shape[0], 1), -math.inf)], -1).amax(-1, keepdim=True)
        top = top if self.shards is None else self.shards.max(top)
        return torch.where(torch.isinf(top), 0.0, top)

    def below_top(self, x: Tensor, temperature: float) -> Tensor:
        """``(x - top(x)) / temperature``, which has digits that large logits lack."""
        # All are divided by 8, so that the difference of two finite logits is finite.
        return (x / 8 - self.top(x) / 8) / (temperature / 8)

    def log_total_below_top(self, away: Tensor) -> Tensor:
        """``log_total`` of the result of :meth:`below_top`, with the digits of a sum just above 1."""
        top = away == 0
        count = self.total(top.to(away.dtype))
        others = self.total(torch.where(top, 0.0, away.exp()))
        # Without a finite logit no column is at the top.
        return torch.where(count == 0, torch.log(others), torch.log(count) + torch.log1p(others / count))

    def entropy(self, log_p: Tensor) -> Tensor:
        return self.total(torch.where(torch.isneginf(log_p), 0.0, -log_p.exp() * log_p))

    def divergence(self) -> tuple[Result, Pair]:
        assert isinstance(self.call.teacher, Tensor)
        spec, s, t = self.spec, self.s, self.of(self.call.teacher)
        y, x = self.below_top(s, spec.temperature), self.below_top(t, spec.teacher_temperature)
        lse_y, lse_x = self.log_total(y), self.log_total(x)
        difference = x - y
        if spec.temperature == spec.teacher_temperature:
            # Where the maxima are close, the logits are subtracted directly: the rounding of each side would
            # swamp a small log-ratio.
            apart = self.top(t) - self.top(s)
            difference = torch.where(apart.abs() < 1, ((t - s) - apart) / spec.temperature, difference)
        # Entries that are -inf on both sides count as absent.
        log_ratio = (difference - (lse_x - lse_y)).masked_fill((x == y) & torch.isinf(x), 0.0)
        pair = self.pair(x - lse_x, y - lse_y, log_ratio)
        return DIVERGENCES[self.spec.divergence].formula(pair), pair

    def cross_entropy(self) -> tuple[Tensor, Tensor, Tensor]:
        """``(CE, or NaN without labels; weighted CE plus z-loss; the gradient of that sum)``."""
        spec = self.spec
        label_weight, smoothing_weight = 1 - spec.label_smoothing, spec.label_smoothing
        away = self.below_top(self.s, 1.0)
        log_sum = self.log_total_below_top(away)
        log_softmax = away - log_sum
        lse, ce_softmax = self.top(self.s) + log_sum, torch.exp(log_softmax)
        value, grad = torch.zeros_like(lse), torch.zeros_like(ce_softmax)
        if spec.z_loss != 0:
            value, grad = spec.z_loss * lse.square(), 2 * spec.z_loss * lse * ce_softmax
        nll = torch.full_like(lse, math.nan)
        if self.call.labels is not None:
            nll = log_sum - self.total(torch.where(self.at_label, away, 0.0))
            if smoothing_weight:
                mean_nll = log_sum - self.total(away / self.columns)
                nll = label_weight * nll + smoothing_weight * mean_nll
            if spec.ce_weight != 0:
                value = value + spec.ce_weight * nll
                # At the label, softmax - 1 is small for a confident model; expm1 keeps its digits.
                at_label = torch.expm1(log_softmax) + smoothing_weight
                less_label = torch.where(self.at_label, at_label, ce_softmax)
                grad = grad + spec.ce_weight * (less_label - smoothing_weight / self.columns)
        return nll, value, grad

    def agreement(self) -> Tensor:
        assert isinstance(self.call.teacher, Tensor)
        here = torch.stack([self._top(self.s), self._top(self.of(self.call.teacher))], -1)  # (rows, 2, 2)
        if self.shards is not None:
            found = self.shards.gather(here)
            owner = found[:, :, 0].argmax(0, keepdim=True)
            column = found[:, :, 1].gather(0, owner)[0]
            return ((owner[0, :, 0] == owner[0, :, 1]) & (column[:, 0] == column[:, 1]))[:, None]
        return (here[:, 1, 0] == here[:, 1, 1])[:, None]

    @staticmethod
    def _top(x: Tensor) -> Tensor:
        """``(rows, 2)``: the largest logit and its column; -inf where a shard has no columns."""
        if x.shape[1] == 0:
            return torch.cat([x.new_full((x.shape[0], 1), fill) for fill in (-math.inf, -1.0)], -1)
        value, index = x.max(-1)
        return torch.stack([value, index.to(x.dtype)], -1)


class ReferenceBackend(KernelBackend):
    """Every formula written out over whole ``(rows, vocab)`` tensors."""

    name = "reference"

    def missing(self, device: torch.device, dtype: torch.dtype | None = None) -> str | None:
        return None

    def compute(self, call: Call) -> None:
        if isinstance(call.teacher, SparseRows):
            super().compute(call)  # only a sparse teacher needs work between the sweeps
        else:
            self.launch(call)

    def launch(
        self,
        call: Call,
        phase: Phase = "all",
        record: Tensor | None = None,
        coefficient: Tensor | None = None,
    ) -> None:
        rows = _Rows(call)
        if phase == "statistics":
            assert record is not None
            self._find_statistics(rows, record)
            return
        spec, read = call.spec, rows.read
        nothing = torch.full_like(call.row_loss, math.nan)[:, None]
        metrics = dict.fromkeys(METRICS, nothing)
        if call.metrics is not None:
            y = rows.below_top(rows.s, spec.temperature)
            metrics["student_entropy"] = rows.entropy(y - rows.log_total(y))
        loss, by_s, by_t = torch.zeros_like(call.row_loss)[:, None], torch.zeros_like(rows.s), None
        if coefficient is not None:
            y = rows.below_top(rows.s, spec.temperature)
            q = torch.exp(y - rows.log_total(y))
            by_s = spec.kd_weight / spec.temperature * coefficient[:, None] * q
        elif spec.kd_weight != 0:
            result, pair = rows.divergence()
            loss = spec.kd_weight * result.value
            by_s = spec.kd_weight / spec.temperature * result.by_student
            by_t = spec.kd_weight / spec.teacher_temperature * result.by_teacher
            if call.metrics is not None:
                metrics["kd"] = spec.kd_metric * result.value
                metrics["teacher_entropy"] = rows.entropy(pair.log_p)
                metrics["agreement"] = rows.agreement()
        if spec.ce_weight != 0 or spec.z_loss != 0 or call.metrics is not None:
            metrics["ce"], value, grad = rows.cross_entropy()
            loss, by_s = loss + value, by_s + grad

        out_of_range = torch.zeros_like(read)
        if call.labels is not None and call.shards is None:
            out_of_range = read & ((call.labels < 0) | (call.labels >= spec.vocab_size))
        loss = loss[:, 0].masked_fill(out_of_range, math.nan)
        call.row_loss.copy_(torch.where(read, call.loss_scale * loss, torch.zeros_like(loss)))
        if call.metrics is not None:
            found = torch.cat([metrics[name].to(loss.dtype) for name in METRICS], -1)
            call.metrics.copy_(torch.where(read[:, None], found, torch.zeros_like(found)))
        for out, by in ((call.grad_student, by_s), (call.grad_teacher, by_t)):
            if out is None:
                continue
            out.zero_()
            if by is None:
                continue
            by = torch.where(read[:, None], call.grad_scale[:, None] * by, torch.zeros_like(by))
            by = by.masked_fill(out_of_range[:, None], math.nan)
            out[..., : spec.vocab_size] = by.view(*out.shape[:2], spec.vocab_size).to(out.dtype)

    @staticmethod
    def _find_statistics(rows: _Rows, record: Tensor) -> None:
        """The student's side of this shard's records, which is all that a sparse teacher needs."""
        s, spec = rows.s, rows.spec
        edge = s.new_full((s.shape[0], 1), -math.inf)
        top = torch.cat([s, edge], -1).amax(-1, keepdim=True)
        away = s - torch.where(torch.isinf(top), 0.0, top)
        e = torch.exp(away / spec.temperature)
        statistics = {
            "max_s": top[:, 0],
            "z_s": e.sum(-1),
            "z_ce": torch.exp(away).sum(-1),
            "logit_sum": away.sum(-1),
            "label_s": torch.cat([s.masked_fill(~rows.at_label, -math.inf), edge], -1).amax(-1),
            "moment_s": torch.where(e == 0, 0.0, e * away).sum(-1),
            "columns": torch.full_like(top[:, 0], s.shape[1]),
        }
        for name, value in statistics.items():
            record[:, COLUMNS.index(name)] = torch.where(rows.read, value, 0.0)

    def scale_rows(self, grad: Tensor, factor: Tensor, out: Tensor) -> None:
        out.copy_(grad.to(factor.dtype) * factor.view(*grad.shape[:2], 1))
