"""A sparse teacher's divergence, computed from its few columns in plain torch on ``(rows, K)``.

On the student's side one more class stands for all other columns. On the whole vocabulary the gradient is
then a coefficient times ``q``, which a kernel writes without the teacher, plus a correction at the ``K``
columns. The gradient there is written a second time, so that it is rounded only once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastkd.backends.base import Call, SparseRows
from fastkd.backends.record import COLUMNS
from fastkd.divergences import DIVERGENCES, Pair
from fastkd.spec import METRICS, LossSpec

# A smaller rest, on either side, cannot be distinguished from 0: float32 rounds a sum near 1 that much.
LEAST_REST = 2.0**-24


def has_rest(tail: str, spec: LossSpec) -> bool:
    """Whether the student's mass outside the entries is a class of its own (never with ``drop``)."""
    if tail == "renormalize":
        return DIVERGENCES[spec.divergence].over_vocabulary(spec.alpha, spec.beta)
    return tail == "bucket"


def log_rest(log_masses: Tensor) -> Tensor:
    """``(rows, 1)``, the logarithm of 1 minus the sum of the masses with these ``(rows, K)`` logarithms."""
    top, place = log_masses.max(-1, keepdim=True)
    others = log_masses.scatter(-1, place, -math.inf)
    # If one entry has nearly all the mass, only expm1 keeps the digits of 1 minus its mass.
    rest = -torch.expm1(top) - others.exp().sum(-1, keepdim=True)
    return torch.log(rest.clamp(min=LEAST_REST))


def column(record: Tensor, name: str) -> Tensor:
    """A record's column of this name, ``(rows, 1)``."""
    return record[:, COLUMNS.index(name)].unsqueeze(-1)


class Support:
    """The student's logits at the teacher's entries.

    Attributes:
        present: ``(rows, K)`` bool, entries that exist; none in rows that are not read.
        here: ``(rows, K)`` bool, those of them in this process's shard.
        index: ``(rows, K)`` column in this shard, 0 where not here.
        logits: ``(rows, K)`` of the arithmetic's dtype, -inf where not present.
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
        found = torch.zeros_like(teacher.logprobs)
        if vocab:
            found = call.student[self.place(self.index)].to(teacher.logprobs.dtype)
        self.logits = torch.where(self.here, found, -math.inf)
        if call.shards is not None:
            self.logits = call.shards.max(self.logits)

    def place(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """An index into ``(outer, inner, columns)`` for ``(rows, k)`` columns."""
        return self.rows // self.inner, self.rows % self.inner, index


@dataclass
class Divergence:
    """A divergence and its gradients, computed from the student's log-sum-exp, in the record's dtype."""

    value: Tensor  # (rows, 1)
    coefficient: Tensor  # (rows,) of q in the gradient with respect to s / T; the arithmetic's dtype
    by_student: Tensor  # (rows, K), the gradient with respect to s / T at the entries
    teacher_entropy: Tensor  # (rows, 1)


def divergence(call: Call, teacher: SparseRows, support: Support, record: Tensor) -> Divergence:
    """The divergence of each row and its gradients; fills ``teacher.grad``."""
    spec, present = call.spec, support.present
    logprobs = torch.where(present, teacher.logprobs.to(record.dtype), -math.inf)
    away = (support.logits - column(record, "max_s")) / spec.temperature
    log_q = torch.where(present, away - torch.log(column(record, "z_s")), -math.inf)
    dropped = teacher.tail == "drop"
    found = _dropped(logprobs, log_q) if dropped else _classes(spec, teacher, logprobs, log_q)
    value, coefficient, by_student, by_logprobs, log_p = found

    # A row without entries adds nothing to the loss.
    empty = ~present.any(-1, keepdim=True)
    value, coefficient = value.masked_fill(empty, 0.0), coefficient.masked_fill(empty, 0.0)
    if teacher.grad is not None:
        scale = (call.grad_scale.to(record.dtype) * spec.kd_weight)[:, None]
        teacher.grad.copy_(torch.where(present, scale * by_logprobs, 0.0))
    entropy = -torch.where(torch.isneginf(log_p), 0.0, log_p.exp() * log_p).sum(-1, keepdim=True)
    return Divergence(value, coefficient[:, 0].to(call.loss_scale.dtype), by_student, entropy)


def _dropped(logprobs: Tensor, log_q: Tensor) -> tuple[Tensor, ...]:
    """The forward KL over the entries, with their weights as they are.

    Returns the value, the coefficient, the gradients with respect to ``s / T`` and to ``logprobs``, and
    ``log p``.
    """
    absent = torch.isneginf(logprobs)
    weight = logprobs.exp()
    ratio = (logprobs - log_q).masked_fill(absent, 0.0)
    total = weight.sum(-1, keepdim=True)
    value = torch.where(weight == 0, 0.0, weight * ratio).sum(-1, keepdim=True)
    by_student = total * log_q.exp() - weight
    by_logprobs = torch.where(absent, 0.0, weight * (ratio + 1))
    return value, total, by_student, by_logprobs, _log_softmax(logprobs, 1.0)


def _log_softmax(x: Tensor, temperature: float) -> Tensor:
    """``log_softmax(x / temperature)`` over the last dimension; all -inf in rows where ``x`` is all -inf."""
    found = torch.log_softmax(x / temperature, -1)
    return torch.where(torch.isneginf(x), -math.inf, found)


def _classes(spec: LossSpec, teacher: SparseRows, logprobs: Tensor, log_q: Tensor) -> tuple[Tensor, ...]:
    """The divergence over the entries and, if :func:`has_rest`, one more class for all other columns.

    Returns the same results as :func:`_dropped`.
    """
    bucket, rest = teacher.tail == "bucket", has_rest(teacher.tail, spec)
    nothing = torch.full_like(logprobs[:, :1], -math.inf)
    teacher_rest = log_rest(logprobs) if bucket else nothing
    student_rest = log_rest(log_q) if rest else nothing
    p = _log_softmax(torch.cat([logprobs, teacher_rest], -1), spec.teacher_temperature)
    q = torch.cat([log_q, student_rest], -1)
    if teacher.class_temperature != 1.0 or not rest:
        q = _log_softmax(q, teacher.class_temperature)
    ratio = (p - q).masked_fill(torch.isneginf(p) & torch.isneginf(q), 0.0)
    result = DIVERGENCES[spec.divergence].formula(Pair(p, q, ratio, spec.alpha, spec.beta))
    by_classes = result.by_student / teacher.class_temperature
    by_student, by_rest = by_classes[:, :-1], by_classes[:, -1:]
    coefficient = by_rest / student_rest.exp() if rest else torch.zeros_like(by_rest)
    by_teacher = result.by_teacher / spec.teacher_temperature
    by_logprobs = by_teacher[:, :-1]
    if bucket:
        # The rest's mass is 1 minus that of the entries, so each log-probability also changes the rest.
        by_logprobs = by_logprobs - logprobs.exp() * (by_teacher[:, -1:] / teacher_rest.exp())
    return result.value, coefficient, by_student, by_logprobs, p


def complete(call: Call, support: Support, record: Tensor, found: Divergence) -> None:
    """Add the divergence to the kernel's results: losses, metrics, and the gradient at the entries."""
    spec, read, dtype = call.spec, support.read[:, None], record.dtype
    loss = call.loss_scale.to(dtype)[:, None] * spec.kd_weight * found.value
    call.row_loss += torch.where(read, loss, 0.0)[:, 0].to(call.row_loss.dtype)
    if call.metrics is not None:
        assert isinstance(call.teacher, SparseRows)
        best = torch.where(support.present, call.teacher.logprobs, -math.inf).argmax(-1, keepdim=True)
        teacher_top = support.logits.gather(-1, best)
        agreement = (teacher_top == column(record, "max_s")) & support.present.any(-1, keepdim=True)
        for name, value in (
            ("kd", spec.kd_metric * found.value),
            ("teacher_entropy", found.teacher_entropy),
            ("agreement", agreement.to(dtype)),
        ):
            place = METRICS.index(name)
            call.metrics[:, place] = torch.where(read, value, 0.0)[:, 0].to(call.metrics.dtype)
    if call.grad_student is None or spec.vocab_size == 0:
        return

    grad = spec.kd_weight / spec.temperature * found.by_student
    ce_weight = spec.ce_weight if call.labels is not None else 0.0
    if ce_weight or spec.z_loss:
        away, log_z = support.logits - column(record, "max_s"), torch.log(column(record, "z_ce"))
        lse = column(record, "max_s") + log_z
        grad = grad + (ce_weight + 2 * spec.z_loss * lse) * torch.exp(away - log_z)
    if ce_weight and call.labels is not None:
        hot = (support.index == call.labels[:, None]).to(dtype)
        uniform = spec.label_smoothing / column(record, "columns").clamp(min=1)
        grad = grad - ce_weight * ((1 - spec.label_smoothing) * hot + uniform)
    entries = (call.grad_scale.to(dtype)[:, None] * grad).to(call.grad_student.dtype)
    # Entries that are not here write to column 0 what it holds anyway: the kernel's value, or an entry's.
    first = call.grad_student[support.place(torch.zeros_like(support.rows))]
    at_first = support.here & (support.index == 0)
    entry = entries.gather(-1, at_first.to(torch.int8).argmax(-1, keepdim=True))
    first = torch.where(at_first.any(-1, keepdim=True), entry, first)
    call.grad_student[support.place(support.index)] = torch.where(support.here, entries, first)
