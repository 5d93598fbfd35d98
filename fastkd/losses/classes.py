"""Cross-entropy with class weights, or with class probabilities as labels.

The kernels accept one label per token and one weight per row, so both cases need a second call, which
computes cross-entropy alone. With hard labels, the class weights of the labels are the row weights of that
call. Class probabilities ``y`` are its teacher: with ``m = sum(y)`` and ``r = y / m``,
``-sum y log q = m (KL(r, q) + H(r))``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastkd.losses import checks, reduction as reductions
from fastkd.losses.options import Options
from fastkd.losses.request import Inputs
from fastkd.losses.sides import Side
from fastkd.ops.rows import wide
from fastkd.spec import METRICS, LossSpec, changed

CE, KD = METRICS.index("ce"), METRICS.index("kd")


class Term(NamedTuple):
    """One call of the op; a loss is the sum of its terms.

    Attributes:
        spec: the arithmetic of the call.
        teacher: what the student is compared with.
        labels: ``(...)`` int64 or None.
        scale: ``(rows,)``, the weights of the rows.
        weight: ``(rows,)``, the factor of each row's cross-entropy, if this term is the cross-entropy; else
            None.
        entropy: ``(rows,)``, ``H(r)``, which the divergence from soft labels lacks to be their cross-entropy;
            else None.
    """

    spec: LossSpec
    teacher: Side
    labels: Tensor | None
    scale: Tensor
    weight: Tensor | None = None
    entropy: Tensor | None = None

    def inputs(self, student: Side) -> Inputs:
        sides = *tuple(student)[:3], *tuple(self.teacher)[:3]
        source = self.teacher.indices, self.teacher.subset
        return Inputs(*sides, *source, self.labels, self.scale)  # type: ignore[arg-type, call-arg]

    def complete(self, loss: Tensor, per_token: bool) -> Tensor:
        """The term of the loss, given what the op returned."""
        if self.entropy is None:
            return loss
        constant = self.spec.kd_weight * self.scale * self.entropy
        return loss + (constant if per_token else constant.sum())

    def metrics(self, rows: Tensor, others: Tensor) -> Tensor:
        """``(rows, len(METRICS))``: ``others``, the other term's metrics, with this term's cross-entropy."""
        assert self.weight is not None
        ce = rows[:, CE] if self.entropy is None else rows[:, KD] + self.entropy
        joined = others.clone()
        joined[:, CE] = torch.where(self.scale == 0, 0.0, self.weight * ce).to(joined.dtype)
        return joined


def by_class(
    student: Tensor,
    columns: int,
    teacher: Side,
    labels: Tensor | None,
    options: Options,
    spec: LossSpec,
) -> list[Term]:
    """The terms of a loss with class weights or soft labels: all but cross-entropy, and cross-entropy.

    Args:
        student: the student's logits or hidden states ``(..., n)``.
        columns: the width of the student's logits.
        labels: ``(...)`` int64, ``(..., V)`` class probabilities, or None if nothing needs them.
    """
    leading, device = student.shape[:-1], student.device
    weights, vocab = options.class_weights, spec.vocab_size
    soft = labels is not None and labels.is_floating_point()
    if weights is not None:
        checks.class_weights(weights, columns, vocab, device, sharded=options.group is not None)
    if labels is not None and soft:
        checks.soft_labels(labels, leading, columns, vocab, device, options.divergence)
    dense = soft or (weights is not None and spec.label_smoothing != 0)
    if dense and options.group is not None:
        raise ValueError(
            "class probabilities as labels, and class_weights with label_smoothing, do not go with group=: "
            "pass hard labels, or label_smoothing=0"
        )
    hard = None if soft else labels
    terms = []
    measured = options.return_metrics and labels is not None
    tokens = options.reduction, hard, options.ignore_index, options.token_weights, options.num_items
    if spec.kd_weight != 0 or spec.z_loss != 0 or options.return_metrics:
        scale = reductions.row_scale(*tokens, student, wide(student, teacher.tensor), options.backend)
        terms.append(Term(changed(spec, ce_weight=0.0, label_smoothing=0.0), teacher, hard, scale))
    if labels is None or (spec.ce_weight == 0 and not measured and terms):
        return terms
    make = _soft_term if dense else _hard_term
    return [*terms, make(student, labels, options, spec)]


def _hard_term(student: Tensor, labels: Tensor, options: Options, spec: LossSpec) -> Term:
    assert options.class_weights is not None
    weight = _weight_of_label(labels, options.class_weights, wide(student))
    scale = _scale(student, labels, options, weight, weight)
    return Term(changed(spec, kd_weight=0.0, z_loss=0.0), Side(None), labels, scale, weight)


def _soft_term(student: Tensor, labels: Tensor, options: Options, spec: LossSpec) -> Term:
    soft, vocab, e = labels.is_floating_point(), spec.vocab_size, spec.label_smoothing
    dtype, weights = wide(student, labels if soft else None), options.class_weights
    if soft:
        y = labels[..., :vocab].to(dtype)
    else:
        y = (torch.arange(vocab, device=labels.device) == labels[..., None]).to(dtype)
    y = (1 - e) * y + e / vocab
    by_label = None
    if weights is not None:
        y = y * weights.detach()[:vocab].to(dtype)
        by_label = None if soft else _weight_of_label(labels, weights, dtype)
    log_y = torch.log(y)
    log_mass = torch.logsumexp(log_y, -1, keepdim=True)
    log_r = log_y - log_mass
    entropy = -torch.where(y == 0, 0.0, log_r.exp() * log_r).sum(-1).reshape(-1)
    mass = log_mass.exp().reshape(-1)
    scale = _scale(student, None if soft else labels, options, mass, by_label)
    of_soft = changed(
        spec,
        divergence="forward_kl",
        temperature=1.0,
        teacher_temperature=1.0,
        kd_weight=spec.ce_weight,
        kd_metric=1.0,
        ce_weight=0.0,
        label_smoothing=0.0,
        z_loss=0.0,
    )
    return Term(of_soft, Side(log_y, columns=vocab), None if soft else labels, scale, mass, entropy)


def _weight_of_label(labels: Tensor, weights: Tensor, dtype: torch.dtype) -> Tensor:
    """``(rows,)``, arbitrary where the label is ignored. The op rejects labels outside the vocabulary."""
    labels = labels.reshape(-1)
    known = (labels >= 0) & (labels < weights.shape[0])
    return weights.detach().to(dtype)[torch.where(known, labels, 0)]


def _scale(
    student: Tensor, labels: Tensor | None, options: Options, factor: Tensor, by_label: Tensor | None
) -> Tensor:
    """``(rows,)``, the weights of rows whose cross-entropy is multiplied by ``factor``.

    As in ``F.cross_entropy``, the mean over hard labels is divided by the sum of their class weights.
    """
    tokens = labels, options.ignore_index, options.token_weights
    result = student, factor.dtype, options.backend
    if options.reduction == "mean" and options.num_items is None and by_label is not None:
        scale = reductions.row_scale("sum", *tokens, None, *result)
        total = (scale * by_label).sum()
        scale = scale * torch.where(total == 0, 0.0, 1.0 / total)
    else:
        scale = reductions.row_scale(options.reduction, *tokens, options.num_items, *result)
    return torch.where(scale == 0, 0.0, scale * factor)
