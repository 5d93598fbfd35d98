"""The student's and the teacher's side of a call, checked and brought into one form."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastkd.divergences import DIVERGENCES
from fastkd.losses import checks
from fastkd.losses.options import Options
from fastkd.ops.columns import check_columns
from fastkd.teachers import TAILS, HiddenTeacher, SparseTeacher, head_logits


class Side(NamedTuple):
    """One model's distributions, checked: logits, or hidden states and a head, or a sparse teacher.

    Attributes:
        tensor: ``(..., V)`` logits, ``(..., H)`` hidden states or ``(..., K)`` log-probabilities; None
            without a teacher.
        columns: how many columns the logits have; None where that is not known.
        subset: ``(V,)`` int64, the teacher's columns that the student has, in its order; None for all.
        rest: whether the teacher's other columns form one more class.
    """

    tensor: Tensor | None
    weight: Tensor | None = None
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    indices: Tensor | None = None
    tail: str | None = None
    columns: int | None = None
    subset: Tensor | None = None
    rest: bool = False

    def logits(self) -> Tensor | None:
        """``tensor``, or for a head the whole logits, which plain torch computes."""
        if self.weight is None or self.tensor is None:
            return self.tensor
        return head_logits(self.tensor, self.weight, self.bias, self.scale, self.softcap)


def head_side(
    name: str, hidden: Tensor, weight: Tensor, bias: Tensor | None, scale: float, softcap: float | None
) -> Side:
    """A side given by hidden states ``(..., H)`` and a head, cast as autocast casts for ``F.linear``."""
    scale = checks.number("logit_scale", scale, -math.inf, math.inf)
    if softcap is not None:
        softcap = checks.number("logit_softcap", softcap, 0.0, math.inf, open_low=True)
    checks.head(name, hidden, weight, bias)
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind) and torch.float64 not in (hidden.dtype, weight.dtype):
        dtype = torch.get_autocast_dtype(kind)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    checks.head_dtypes(name, hidden, weight, bias)
    return Side(hidden, weight, bias, scale, softcap, columns=weight.shape[0])


def teacher_side(teacher: Any, leading: torch.Size, device: torch.device, options: Options) -> Side:
    """The teacher's side of a call for a student of this leading shape."""
    if isinstance(teacher, HiddenTeacher):
        side = head_side(
            "teacher",
            teacher.hidden,
            teacher.weight,
            teacher.bias,
            teacher.logit_scale,
            teacher.logit_softcap,
        )
    elif isinstance(teacher, SparseTeacher):
        temperatures = options.temperature, options.teacher_temperature
        _check_sparse(teacher, leading, device, options.divergence, *temperatures)
        return Side(teacher.logprobs, indices=teacher.indices, tail=teacher.tail)
    elif teacher is None and options.kd_ratio == 0:
        return Side(None)
    else:
        checks.logits_like("teacher", teacher, empty=options.group is not None)
        side = Side(teacher, columns=teacher.shape[-1])
    assert side.tensor is not None
    checks.leading_shape("teacher", side.tensor.shape[:-1], leading)
    checks.same_device(device, teacher=side.tensor, teacher_weight=side.weight, teacher_bias=side.bias)
    return side


def _check_sparse(
    teacher: SparseTeacher,
    leading: torch.Size,
    device: torch.device,
    divergence: str,
    *temperatures: float | None,
) -> None:
    """Check a sparse teacher's tensors, and that it supports the divergence and the temperatures."""
    indices, logprobs = teacher.indices, teacher.logprobs
    checks.logits_like("teacher.logprobs", logprobs, "(..., K)")
    if not isinstance(indices, Tensor) or indices.dtype not in (torch.int64, torch.int32):
        kind = indices.dtype if isinstance(indices, Tensor) else type(indices).__name__
        raise TypeError(f"teacher.indices must be an int64 or int32 tensor, not {kind}")
    if indices.shape != logprobs.shape:
        raise ValueError(
            f"teacher.indices has shape {tuple(indices.shape)}, teacher.logprobs {tuple(logprobs.shape)}: "
            "they must be equal"
        )
    checks.leading_shape("teacher.indices", indices.shape[:-1], leading)
    checks.same_device(device, **{"teacher.indices": indices, "teacher.logprobs": logprobs})
    checks.one_of("tail", teacher.tail, TAILS)
    if teacher.tail == "drop" and divergence in DIVERGENCES and divergence != "forward_kl":
        raise ValueError(
            f"a SparseTeacher with tail='drop' has no divergence={divergence!r}: choose 'forward_kl', or "
            "another tail"
        )
    if divergence in DIVERGENCES and DIVERGENCES[divergence].splits_label:
        raise ValueError(
            f"a SparseTeacher has no divergence={divergence!r}, which treats the label apart, an entry or "
            "not: choose another, or pass all logits"
        )
    if teacher.tail == "drop" and any(t not in (None, 1) for t in temperatures):
        raise ValueError(
            "a SparseTeacher with tail='drop' is known at temperature 1 only: pass temperature=1, or another "
            "tail"
        )


def subset_of(teacher: Side, student_columns: int, options: Options) -> Side:
    """The teacher's side restricted to ``options.teacher_columns``, the columns that the student has."""
    columns = options.teacher_columns
    assert columns is not None
    checks.teacher_columns(columns, student_columns, options)
    if teacher.tensor is None:
        return teacher
    checks.same_device(teacher.tensor.device, teacher_columns=columns)
    rest = options.teacher_tail == "bucket"
    if teacher.indices is not None:
        return _entries_in(teacher, columns)
    tensor, weight, bias = teacher.tensor, teacher.weight, teacher.bias
    if rest or weight is None:
        shape = teacher.scale, teacher.softcap
        return Side(tensor, weight, bias, *shape, columns=teacher.columns, subset=columns, rest=rest)
    if not torch.compiler.is_compiling():
        check_columns(columns, tensor, weight)
    # The head's other columns need not be computed.
    bias = None if bias is None else bias[columns]
    return Side(tensor, weight[columns], bias, teacher.scale, teacher.softcap, columns=columns.shape[0])


def _entries_in(teacher: Side, columns: Tensor) -> Side:
    """A sparse teacher's entries with the student's column numbers; those that it lacks become absent."""
    assert teacher.indices is not None and teacher.tensor is not None
    ordered, place = columns.sort()
    wanted = teacher.indices.long()
    found = torch.searchsorted(ordered, wanted).clamp(max=columns.shape[0] - 1)
    known = ordered[found] == wanted
    indices = torch.where(known, place[found], 0)
    return Side(teacher.tensor.masked_fill(~known, -math.inf), indices=indices, tail=teacher.tail)
