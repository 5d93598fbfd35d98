"""A sparse teacher's divergence: from the few columns that it speaks of, in plain torch on ``(rows, K)``.

The student's side is one more class for all other columns. On the whole vocabulary the gradient is then a
coefficient times ``q``, which a kernel writes without knowing of the teacher, and a correction at the ``K``
columns, which are written once more, each rounded once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastkd.backends.base import Call, SparseRows
from fastkd.backends.formulas import FORMULAS, Pair
from fastkd.backends.record import COLUMNS
from fastkd.spec import METRICS

# Mass below float32's rounding of a sum near 1 is not told from 0, on either side.
LEAST_REST = 2.0**-24


def column(record: Tensor, name: str) -> Tensor:
    """``(rows, 1)`` of a record."""
    return record[:, COLUMNS.index(name)].unsqueeze(-1)


class Support:
    """The student's logits at the teacher's entries.

    Attributes:
        present: ``(rows, K)`` bool, entries that exist; none in rows that are not read.
        here: of those, the ones in this process's shard.
        index: ``(rows, K)`` column in this shard, 0 where not here.
        logits: ``(rows, K)`` float64, -inf where not present.
        first: ``(rows, 1)`` float64, the logit of column 0.
    """

    def __init__(self, call: Call, teacher: SparseRows) -> None:
        outer, inner, _ = call.student.shape
        read = call.read
        vocab = call.spec.vocab_size
        self.rows = torch.arange(outer * inner, device=read.device)[:, None]
        self.inner = inner
        self.read = read
        self.present = read[:, None] & ~torch.isneginf(teacher.logprobs)
        self.here = self.present & (teacher.indices >= 0) & (teacher.indices < vocab)
        self.index = torch.where(self.here, teacher.indices, 0)
        if vocab:
            found = call.student[self.place(self.index)].double()
            self.first = call.student[self.place(torch.zeros_like(self.rows))].double()
        else:
            found = torch.zeros_like(teacher.logprobs, dtype=torch.float64)
            self.first = found.new_zeros(len(self.rows), 1)
        self.logits = torch.where(self.here, found, -math.inf)
        if call.shards is not None:
            self.logits = call.shards.max(self.logits)

    def place(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """An index into ``(outer, inner, columns)`` for ``(rows, k)`` columns."""
        return self.rows // self.inner, self.rows % self.inner, index


@dataclass
class Divergence:
    """What is known once the student's partition is: all float64."""

    value: Tensor  # (rows, 1)
    coefficient: Tensor  # (rows,) of q in the gradient by s / T, in the dtype of the call's arithmetic
    by_student: Tensor  # (rows, K), that gradient at the entries
    teacher_entropy: Tensor  # (rows, 1)


def divergence(call: Call, teacher: SparseRows, support: Support, record: Tensor) -> Divergence:
    """The divergence of each row and its gradients; fills ``teacher.grad``."""
    spec, present = call.spec, support.present
    logprobs = torch.where(present, teacher.logprobs.double(), -math.inf)
    lse_q = column(record, "max_s") / spec.temperature + torch.log(column(record, "z_s"))
    lse_q = torch.where(support.read[:, None], lse_q, 0.0)
    log_q = torch.where(present, support.logits / spec.temperature - lse_q, -math.inf)
    nothing = torch.zeros_like(lse_q)

    if teacher.tail == "drop":
        weight = logprobs.exp()
        ratio = (logprobs - log_q).masked_fill(~present, 0.0)
        total = weight.sum(-1, keepdim=True)
        value = torch.where(weight == 0, 0.0, weight * ratio).sum(-1, keepdim=True)
        by_student, coefficient = total * log_q.exp() - weight, total
        by_logprobs = torch.where(present, weight * (ratio + 1), 0.0)
        log_p = torch.log_softmax(logprobs, -1).masked_fill(~present, -math.inf)
        teacher_rest = torch.full_like(nothing, -math.inf)
    else:
        if teacher.tail == "bucket":
            log_p = logprobs
            teacher_rest = torch.log((1 - log_p.exp().sum(-1, keepdim=True)).clamp(min=LEAST_REST))
        else:
            log_p = torch.log_softmax(logprobs / spec.teacher_temperature, -1).masked_fill(
                ~present, -math.inf
            )
            teacher_rest = torch.full_like(nothing, -math.inf)
        whole = teacher.tail == "bucket" or spec.divergence == "forward_kl"
        if whole:
            student_rest = torch.log((1 - log_q.exp().sum(-1, keepdim=True)).clamp(min=LEAST_REST))
        else:  # among the K columns alone
            log_q = torch.log_softmax(log_q, -1).masked_fill(~present, -math.inf)
            student_rest = torch.full_like(nothing, -math.inf)
        p, q = torch.cat([log_p, teacher_rest], -1), torch.cat([log_q, student_rest], -1)
        ratio = (p - q).masked_fill(torch.isneginf(p) & torch.isneginf(q), 0.0)
        result = FORMULAS[spec.divergence](Pair(p, q, ratio, spec.alpha, spec.beta))
        value = result.value
        by_student, by_rest = result.by_student[:, :-1], result.by_student[:, -1:]
        coefficient = by_rest / student_rest.exp() if whole else nothing
        by_logprobs, by_teacher_rest = result.by_teacher[:, :-1], result.by_teacher[:, -1:]
        if teacher.tail == "bucket":
            # The logarithms are the teacher's own, and the rest's mass is 1 less theirs.
            by_logprobs = by_logprobs - log_p.exp() * (by_teacher_rest / teacher_rest.exp())
        else:
            by_logprobs = by_logprobs / spec.teacher_temperature

    # A row without any entry says nothing.
    empty = ~present.any(-1, keepdim=True)
    value, coefficient = value.masked_fill(empty, 0.0), coefficient.masked_fill(empty, 0.0)
    if teacher.grad is not None:
        scale = (call.grad_scale.double() * spec.kd_weight)[:, None]
        teacher.grad.copy_(torch.where(present, scale * by_logprobs, 0.0))
    p = torch.cat([log_p, teacher_rest], -1)
    entropy = -torch.where(torch.isneginf(p), 0.0, p.exp() * p).sum(-1, keepdim=True)
    return Divergence(value, coefficient[:, 0].to(call.loss_scale.dtype), by_student, entropy)


def complete(call: Call, support: Support, record: Tensor, found: Divergence) -> None:
    """Add the divergence to what the kernel has left: losses, metrics, and the gradient at the entries."""
    spec, read = call.spec, support.read[:, None]
    loss = call.loss_scale.double()[:, None] * spec.kd_weight * found.value
    call.row_loss += torch.where(read, loss, 0.0)[:, 0].to(call.row_loss.dtype)
    if call.metrics is not None:
        assert isinstance(call.teacher, SparseRows)
        best = torch.where(support.present, call.teacher.logprobs, -math.inf).argmax(-1, keepdim=True)
        teacher_top = support.logits.gather(-1, best)
        agreement = (teacher_top == column(record, "max_s")) & support.present.any(-1, keepdim=True)
        for name, value in (
            ("kd", spec.kd_metric * found.value),
            ("teacher_entropy", found.teacher_entropy),
            ("agreement", agreement.double()),
        ):
            place = METRICS.index(name)
            call.metrics[:, place] = torch.where(read, value, 0.0)[:, 0].to(call.metrics.dtype)
    if call.grad_student is None or spec.vocab_size == 0:
        return

    scale = call.grad_scale.double()[:, None]
    lse_q = column(record, "max_s") / spec.temperature + torch.log(column(record, "z_s"))
    ce_weight = spec.ce_weight if call.labels is not None else 0.0
    uniform = ce_weight * spec.label_smoothing / column(record, "columns").clamp(min=1)

    def without_correction(logits: Tensor, index: Tensor) -> Tensor:
        """The kernel's gradient at these columns, before its rounding."""
        q = torch.exp(logits / spec.temperature - lse_q)
        grad = spec.kd_weight / spec.temperature * found.coefficient.double()[:, None] * q
        if ce_weight or spec.z_loss:
            lse = column(record, "max_s") + torch.log(column(record, "z_one"))
            grad = grad + (ce_weight + 2 * spec.z_loss * lse) * torch.exp(logits - lse) - uniform
        if ce_weight and call.labels is not None:
            hot = (index == call.labels[:, None]).double()
            grad = grad - ce_weight * (1 - spec.label_smoothing) * hot
        return grad

    q = torch.exp(support.logits / spec.temperature - lse_q)
    correction = found.by_student - found.coefficient.double()[:, None] * q
    correction = torch.where(support.here, spec.kd_weight / spec.temperature * correction, 0.0)
    # Entries that are not here write what column 0 holds anyway.
    at_first = torch.where(support.here & (support.index == 0), correction, 0.0).sum(-1, keepdim=True)
    zero = torch.zeros_like(support.rows)
    first = without_correction(support.first, zero) + at_first
    entries = torch.where(support.here, without_correction(support.logits, support.index) + correction, first)
    values = torch.where(read, scale * entries, 0.0).to(call.grad_student.dtype)
    call.grad_student[support.place(support.index)] = values
