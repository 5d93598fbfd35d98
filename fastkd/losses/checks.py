"""The checks of a call's arguments, which raise before any memory is touched."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from fastkd.divergences import DIVERGENCES, Divergence
from fastkd.divergences.base import UNUSED
from fastkd.spec import LossSpec

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
REDUCTIONS = ("mean", "sum", "batchmean", "none")
# float32 holds their squares, their reciprocals and their quotients.
TEMPERATURES = (1e-15, 1e15)


def one_of(name: str, value: object, choices: Iterable[str]) -> str:
    """``value`` if it is one of ``choices``; otherwise a ``ValueError`` that names the nearest choice."""
    choices = list(choices)
    if isinstance(value, str) and value in choices:
        return value
    near = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.0)[0]
    raise ValueError(f"unknown {name} {value!r}: choose from {', '.join(choices)} (did you mean {near!r}?)")


def number(name: str, value: object, low: float, high: float, *, open_low: bool = False) -> float:
    """A finite Python number in ``[low, high]`` (``(low, high]`` with ``open_low``)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a Python number, not {type(value).__name__}")
    # Only comparisons, which torch.compile can trace; NaN fails the first.
    if not low <= value <= high or abs(value) == math.inf or (open_low and value == low):
        bounds = f"{'(' if open_low else '['}{low:g}, {high:g}{']' if math.isfinite(high) else ')'}"
        raise ValueError(f"{name} must be a finite number in {bounds}, got {value}")
    return float(value)


def logits_like(name: str, x: object, what: str = "(..., V)", *, empty: bool = False) -> Tensor:
    """``x`` if it is a floating tensor with dimensions. Only if ``empty`` (a shard) may the last be 0."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, not {type(x).__name__}")
    if type(x).__name__ == "DTensor":
        raise TypeError(
            f"{name} is a DTensor, of which this process holds a part: pass {name}.full_tensor(), or where "
            f"it is sharded by vocabulary {name}.to_local() with group="
        )
    if x.dtype not in DTYPES:
        raise TypeError(f"{name} must be float32, bfloat16, float16 or float64, not {x.dtype}")
    if x.dim() == 0 or (x.shape[-1] == 0 and not empty):
        raise ValueError(
            f"{name} must have shape {what} with a non-empty last dimension, got {tuple(x.shape)}"
        )
    return x


def head(side: str, hidden: object, weight: object, bias: object) -> None:
    """Check the types and shapes of hidden states ``(..., H)``, a weight ``(V, H)`` and a bias ``(V,)``."""
    hidden = logits_like(f"{side}_hidden", hidden, "(..., H)")
    weight = logits_like(f"{side}_weight", weight, "(V, H)")
    if weight.dim() != 2 or weight.shape[1] != hidden.shape[-1]:
        raise ValueError(
            f"{side}_weight must have shape (V, {hidden.shape[-1]}) to match {side}_hidden, "
            f"got {tuple(weight.shape)}"
        )
    if bias is not None and (not isinstance(bias, Tensor) or bias.shape != weight.shape[:1]):
        raise ValueError(f"{side}_bias must be a tensor of shape ({weight.shape[0]},)")


def head_dtypes(side: str, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Raise unless hidden states, weight and bias have one dtype."""
    for name, x in (("weight", weight), ("bias", bias)):
        if x is not None and x.dtype != hidden.dtype:
            raise TypeError(
                f"{side}_{name} is {x.dtype} but {side}_hidden is {hidden.dtype}: cast one, for example "
                f"{side}_hidden.to({side}_{name}.dtype)"
            )


def overwritable(x: Tensor) -> None:
    """Raise unless a gradient may be written over ``x``, which may be a view."""
    for owner in (x, x._base):
        if owner is not None and owner.is_leaf and owner.requires_grad:
            raise ValueError(
                "inplace=True would overwrite a leaf that requires grad: pass a model's logits, or "
                "inplace=False"
            )
    if not x.is_contiguous():
        raise ValueError(
            "inplace=True needs contiguous student_logits: pass inplace=False for a strided view"
        )


def same_device(device: torch.device, **tensors: Tensor | None) -> None:
    for name, x in tensors.items():
        if x is not None and x.device != device:
            raise ValueError(f"{name} is on {x.device} but the student is on {device}: move it with .to()")


def leading_shape(name: str, shape: torch.Size, expected: torch.Size) -> None:
    if shape != expected:
        raise ValueError(
            f"{name} has leading shape {tuple(shape)}, the student {tuple(expected)}: they must be equal"
        )


def per_token(
    labels: Tensor | None, token_weights: Tensor | None, leading: torch.Size, device: torch.device
) -> None:
    """Check labels ``(...)`` int64 and token weights ``(...)`` against the student's leading shape."""
    if labels is not None:
        if not isinstance(labels, Tensor) or labels.dtype != torch.int64:
            kind = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
            raise TypeError(
                f"labels must be an int64 tensor, not {kind}: convert with .long() (class probabilities have "
                "the shape of the logits)"
            )
        leading_shape("labels", labels.shape, leading)
    if token_weights is not None:
        if not isinstance(token_weights, Tensor) or token_weights.is_complex():
            raise TypeError("token_weights must be a tensor of real numbers")
        leading_shape("token_weights", token_weights.shape, leading)
        if token_weights.requires_grad:
            raise ValueError("token_weights must not require grad: no gradient flows to them, pass .detach()")
    same_device(device, labels=labels, token_weights=token_weights)


def teacher_columns(columns: object, student_columns: int, options: Any) -> None:
    """Check ``teacher_columns``, ``(V,)`` int64, for a student that has part of the teacher's vocabulary."""
    if not isinstance(columns, Tensor) or columns.dtype != torch.int64 or columns.dim() != 1:
        raise TypeError("teacher_columns must be an int64 tensor of shape (V,)")
    if columns.shape[0] not in (student_columns, options.vocab_size):
        raise ValueError(
            f"teacher_columns must have shape ({student_columns},), one for each of the student's columns, "
            f"got {tuple(columns.shape)}"
        )
    if options.group is not None:
        raise ValueError("teacher_columns does not go with group=: pass whole vocabularies")
    if options.teacher_tail != "bucket":
        return
    divergence, a, b = parameters(options.divergence, options.alpha, options.beta)
    if DIVERGENCES[divergence].infinite_outside(a, b):
        raise ValueError(
            f"divergence={options.divergence!r} is infinite where the teacher has probability outside the "
            "student's vocabulary: pass teacher_tail='renormalize', or for example divergence='reverse_kl', "
            "'tvd' or 'log_acceptance'"
        )
    if options.label_smoothing:
        raise ValueError("label_smoothing does not go with teacher_tail='bucket': pass 0, or 'renormalize'")


def class_weights(weights: object, columns: int, vocab: int, device: torch.device, *, sharded: bool) -> None:
    """Check class weights ``(V,)``, or as wide as the student; among shards the width is not checked."""
    if not isinstance(weights, Tensor) or not weights.is_floating_point() or weights.dim() != 1:
        raise TypeError("class_weights must be a floating tensor of shape (V,)")
    if weights.requires_grad:
        raise ValueError("class_weights must not require grad: no gradient flows to them, pass .detach()")
    same_device(device, class_weights=weights)
    if not sharded and weights.shape[0] not in (vocab, columns):
        raise ValueError(f"class_weights must have shape ({vocab},), got {tuple(weights.shape)}")
    if not torch.compiler.is_compiling() and device.type == "cpu" and bool((weights < 0).any()):
        raise ValueError("class_weights must not be negative")


def are_soft(labels: object, leading: torch.Size) -> bool:
    """Whether labels are class probabilities: floating, with one dimension more than the tokens."""
    return isinstance(labels, Tensor) and labels.is_floating_point() and labels.dim() == len(leading) + 1


def soft_labels(
    labels: Tensor, leading: torch.Size, columns: int, vocab: int, device: torch.device, divergence: str
) -> None:
    """Check labels that are class probabilities ``(..., V)``, or as wide as the student."""
    if labels.dim() == 0 or labels.shape[:-1] != leading or labels.shape[-1] not in (vocab, columns):
        raise ValueError(
            f"labels that are class probabilities must have shape {(*leading, vocab)}, got "
            f"{tuple(labels.shape)}"
        )
    if labels.requires_grad:
        raise ValueError("labels must not require grad: no gradient flows to them, pass .detach()")
    if DIVERGENCES[divergence].splits_label:
        raise ValueError(f"divergence={divergence!r} treats one label apart: pass labels as class numbers")
    same_device(device, labels=labels)


def shards(
    student_columns: int, teacher_columns: int | None, vocab_size: int | None, group: object | None
) -> tuple[int, str | None]:
    """Check the widths; return ``(vocab_size, None)``, or with a group ``(vocab_size or -1, its name)``."""
    if group is None:
        if teacher_columns is None:
            teacher_columns = student_columns
        return vocabulary(student_columns, teacher_columns, vocab_size), None
    if not (torch.distributed.is_available() and isinstance(group, torch.distributed.ProcessGroup)):
        raise TypeError(f"group must be a torch.distributed process group, not {type(group).__name__}")
    if teacher_columns not in (None, student_columns):
        raise ValueError(
            f"this process's shard has {student_columns} columns of the student and {teacher_columns} of the "
            "teacher: with group= both sides must be cut alike"
        )
    if vocab_size is not None and (isinstance(vocab_size, bool) or not isinstance(vocab_size, int)):
        raise TypeError(f"vocab_size must be an int, not {type(vocab_size).__name__}")
    if vocab_size is not None and vocab_size < 1:
        raise ValueError(f"vocab_size must be positive, got {vocab_size}")
    return -1 if vocab_size is None else vocab_size, group.group_name


def vocabulary(student_columns: int, teacher_columns: int, vocab_size: int | None) -> int:
    """The number of columns that exist on both sides."""
    if vocab_size is None:
        if student_columns != teacher_columns:
            raise ValueError(
                f"student has {student_columns} columns and teacher {teacher_columns}: pass vocab_size="
                f"{min(student_columns, teacher_columns)} or less if the extra columns are padding"
            )
        return student_columns
    if isinstance(vocab_size, bool) or not isinstance(vocab_size, int):
        raise TypeError(f"vocab_size must be an int, not {type(vocab_size).__name__}")
    if not 1 <= vocab_size <= min(student_columns, teacher_columns):
        raise ValueError(
            f"vocab_size must be in [1, {min(student_columns, teacher_columns)}] "
            f"(student {student_columns}, teacher {teacher_columns} columns), got {vocab_size}"
        )
    return vocab_size


def parameters(name: str, alpha: float | None, beta: float | None) -> tuple[str, float, float]:
    """``(divergence, alpha, beta)`` with defaults; where a limit is another divergence, that one's name."""
    divergence = DIVERGENCES[one_of("divergence", name, DIVERGENCES)]
    for parameter, value in (("alpha", alpha), ("beta", beta)):
        if value is not None and parameter not in divergence.parameters:
            takers = ", ".join(d.name for d in DIVERGENCES.values() if parameter in d.parameters)
            raise ValueError(f"divergence={name!r} has no {parameter}: it belongs to {takers}")
    a, b = _parameter(divergence, "alpha", alpha), _parameter(divergence, "beta", beta)
    divergence.check(a, b)
    for value, other in divergence.limits.items():
        if b == value:
            return other, a, b
    return name, a, b


def _parameter(divergence: Divergence, name: str, value: float | None) -> float:
    default, least, most = divergence.parameters.get(name, UNUSED)
    return number(name, default if value is None else value, least, most)


def row_spec(
    kd_ratio: float,
    divergence: str,
    alpha: float | None,
    beta: float | None,
    temperature: float,
    teacher_temperature: float | None,
    t_squared: bool,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    vocab_size: int,
) -> LossSpec:
    """Check the numbers of the loss and combine them into a :class:`LossSpec`."""
    ratio = number("kd_ratio", kd_ratio, 0.0, 1.0)
    student_t = number("temperature", temperature, *TEMPERATURES)
    teacher_t = student_t
    if teacher_temperature is not None:
        teacher_t = number("teacher_temperature", teacher_temperature, *TEMPERATURES)
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, int):
        raise TypeError(f"ignore_index must be an int, not {type(ignore_index).__name__}")
    divergence, a, b = parameters(divergence, alpha, beta)
    factor = student_t * student_t if t_squared else 1.0
    return LossSpec(
        divergence=divergence,
        ignore_index=ignore_index,
        vocab_size=vocab_size,
        alpha=a,
        beta=b,
        temperature=student_t,
        teacher_temperature=teacher_t,
        kd_weight=ratio * factor,
        kd_metric=factor,
        ce_weight=1.0 - ratio,
        label_smoothing=number("label_smoothing", label_smoothing, 0.0, 1.0),
        z_loss=number("z_loss", z_loss, 0.0, math.inf),
    )


def needs_labels(divergence: str, kd_ratio: float, labels: Tensor | None) -> None:
    """Raise if the loss needs labels and there are none."""
    if labels is not None:
        return
    if kd_ratio < 1:
        raise ValueError(
            f"kd_ratio={kd_ratio} gives cross-entropy a share, which needs labels (or pass kd_ratio=1)"
        )
    if DIVERGENCES[divergence].splits_label:
        raise ValueError(
            f"divergence={divergence!r} treats the label apart: pass labels, or another divergence"
        )
