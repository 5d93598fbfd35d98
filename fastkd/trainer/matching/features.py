"""Losses between one layer of the student and one of the teacher, with one value for each position.

They are computed in float32 (float64 for float64 inputs). The values of padded positions are meaningless.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# The losses of each kind, the default first.
LOSSES = {"hidden": ("mse", "cosine"), "attention": ("mse", "kl"), "relation": ("mse", "kl")}


@dataclass(frozen=True)
class FeatureMatch:
    """One entry of ``feature_matches``.

    Attributes:
        student, teacher: numbers of layers. For hidden states, 0 is the embeddings and k the output of the
            k-th layer; for attention maps, k is the map of the k-th layer. Negative numbers count from the
            last layer.
        kind: ``hidden`` (FitNets, Romero et al. 2015; patient KD, Sun et al. 2019), ``attention`` (TinyBERT,
            Jiao et al. 2020) or ``relation`` (relational KD, Park et al. 2019; MiniLM, Wang et al. 2020).
        loss: one of :data:`LOSSES`.
        weight: factor of this loss in the sum of all losses.
    """

    student: int
    teacher: int
    kind: str = "hidden"
    loss: str = "mse"
    weight: float = 1.0

    @property
    def layer(self) -> str:
        """The field of a :class:`~fastkd.trainer.views.View` that this match compares."""
        return "attentions" if self.kind == "attention" else "hidden_states"


def parse_matches(given: Sequence[Any]) -> list[FeatureMatch]:
    """``DistillationConfig.feature_matches``, checked.

    Raises:
        ValueError: anything but mappings with the fields of :class:`FeatureMatch`.
    """
    if not isinstance(given, (list, tuple)):
        raise ValueError(f"feature_matches must be a list of mappings, not {given!r}")
    known = [field.name for field in fields(FeatureMatch)]
    found = []
    for i, entry in enumerate(given):
        name = f"feature_matches[{i}]"
        if not isinstance(entry, dict):
            raise ValueError(f"{name} must be a mapping such as {{student: 1, teacher: 2}}, not {entry!r}")
        for key in entry:
            if key not in known:
                raise ValueError(f"{name}: unknown field {key!r}; did you mean {_nearest(key, known)!r}?")
        for side in ("student", "teacher"):
            if type(entry.get(side)) is not int:
                what = "is missing" if side not in entry else f"must be a whole number, not {entry[side]!r}"
                raise ValueError(f"{name}: the {side}'s layer {what}")
        kind = entry.get("kind", "hidden")
        if kind not in LOSSES:
            raise ValueError(f"{name}: unknown kind {kind!r}; did you mean {_nearest(kind, LOSSES)!r}?")
        loss = entry.get("loss", LOSSES[kind][0])
        if loss not in LOSSES[kind]:
            near = _nearest(loss, LOSSES[kind])
            choices = " or ".join(LOSSES[kind])
            raise ValueError(
                f"{name}: kind {kind} takes the loss {choices}, not {loss!r}; did you mean {near!r}?"
            )
        weight = entry.get("weight", 1.0)
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < math.inf:
            raise ValueError(f"{name}: weight must be a positive number, not {weight!r}")
        found.append(FeatureMatch(entry["student"], entry["teacher"], kind, loss, float(weight)))
    return found


def _nearest(name: Any, known: Iterable[str]) -> str:
    return difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.0)[0]


def widened(values: Tensor) -> Tensor:
    """The values in float32, or in float64 if they are float64."""
    return values if values.dtype == torch.float64 else values.float()


def hidden_loss(student: Tensor, teacher: Tensor, loss: str) -> Tensor:
    """``mse``: mean over the width of the squared difference; ``cosine``: 1 minus the cosine.

    Args:
        student, teacher: ``(batch, length, H)``, of the same width.

    Returns:
        ``(batch, length)``.
    """
    student, teacher = widened(student), widened(teacher)
    if loss == "cosine":
        return 1 - F.cosine_similarity(student, teacher, dim=-1)
    return (student - teacher).square().mean(-1)


def attention_loss(student: Tensor, teacher: Tensor, loss: str) -> Tensor:
    """Loss between both models' attention weights of each query, averaged over the heads.

    ``mse``: squared difference, averaged over the keys that either model attends to; ``kl``: divergence of
    the student's weights from the teacher's. If the models have different numbers of heads, each model's
    heads are averaged first. A student's maps include its attention dropout: dropped keys have a weight of 0,
    and ``kl`` leaves them out.

    Args:
        student, teacher: ``(batch, heads, queries, keys)`` attention weights, 0 at masked keys.

    Returns:
        ``(batch, queries)``.
    """
    student, teacher = widened(student), widened(teacher)
    if student.shape[1] != teacher.shape[1]:
        student, teacher = student.mean(1, keepdim=True), teacher.mean(1, keepdim=True)
    if loss == "kl":
        seen = (student > 0) & (teacher > 0)
        logs = teacher.where(seen, 1.0).log() - student.where(seen, 1.0).log()
        return (teacher * logs).sum(-1).mean(1)
    seen = (student > 0) | (teacher > 0)
    return ((student - teacher).square().sum(-1) / seen.sum(-1).clamp(min=1)).mean(1)


def relation_loss(student: Tensor, teacher: Tensor, segments: Tensor, loss: str) -> Tensor:
    """Loss between both models' relations of each token to all tokens of its sequence; the widths may differ.

    ``mse``: squared difference of cosine similarities, averaged over those tokens; ``kl``: divergence of the
    student's ``softmax(h h' / sqrt(H))`` over them from the teacher's (MiniLM's relation, applied to hidden
    states).

    Args:
        student: ``(batch, length, H)``.
        teacher: ``(batch, length, H')``.
        segments: ``(batch, length)``, number of the sequence that a token belongs to, -1 for padding.

    Returns:
        ``(batch, length)``.
    """
    related = segments[:, :, None] == segments[:, None, :]

    def relations(hidden: Tensor) -> Tensor:
        hidden = widened(hidden)
        hidden = F.normalize(hidden, dim=-1) if loss == "mse" else hidden / hidden.shape[-1] ** 0.25
        return hidden @ hidden.mT

    s, t = relations(student), relations(teacher)
    if loss == "mse":
        return (s - t).square().where(related, 0.0).sum(-1) / related.sum(-1)
    s, t = (x.masked_fill(~related, -math.inf).log_softmax(-1) for x in (s, t))
    return (t.exp() * (t - s).where(related, 0.0)).sum(-1)
