"""Everything that can be wrong with a call, found before any memory is touched."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable

import torch
from torch import Tensor

from fastkd.spec import DIVERGENCES, LossSpec

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
REDUCTIONS = ("mean", "sum", "batchmean", "none")


def one_of(name: str, value: object, choices: Iterable[str]) -> str:
    """``value`` if it is among ``choices``; ``ValueError`` with the nearest of them otherwise."""
    choices = list(choices)
    if isinstance(value, str) and value in choices:
        return value
    near = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.0)[0]
    raise ValueError(f"unknown {name} {value!r}: choose from {', '.join(choices)} (did you mean {near!r}?)")


def number(name: str, value: object, low: float, high: float, *, open_low: bool = False) -> float:
    """A finite Python number in ``[low, high]`` (``(low, high]`` with ``open_low``)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a Python number, not {type(value).__name__}")
    # Comparisons alone, which torch.compile can trace; NaN fails the first.
    if not low <= value <= high or abs(value) == math.inf or (open_low and value == low):
        bounds = f"{'(' if open_low else '['}{low:g}, {high:g}{']' if math.isfinite(high) else ')'}"
        raise ValueError(f"{name} must be a finite number in {bounds}, got {value}")
    return float(value)


def logits_like(name: str, x: object, what: str = "(..., V)") -> Tensor:
    """A floating tensor with at least one dimension and a non-empty last one."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, not {type(x).__name__}")
    if x.dtype not in DTYPES:
        raise TypeError(f"{name} must be float32, bfloat16, float16 or float64, not {x.dtype}")
    if x.dim() == 0 or x.shape[-1] == 0:
        raise ValueError(
            f"{name} must have shape {what} with a non-empty last dimension, got {tuple(x.shape)}"
        )
    return x


def overwritable(x: Tensor) -> None:
    """Raise unless a gradient may be written over ``x``."""
    if x.is_leaf and x.requires_grad:
        raise ValueError(
            "inplace=True would overwrite a leaf that requires grad: pass a model's logits, or inplace=False"
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
            raise TypeError(f"labels must be an int64 tensor, not {kind}: convert with .long()")
        leading_shape("labels", labels.shape, leading)
    if token_weights is not None:
        if not isinstance(token_weights, Tensor) or token_weights.is_complex():
            raise TypeError("token_weights must be a tensor of real numbers")
        leading_shape("token_weights", token_weights.shape, leading)
        if token_weights.requires_grad:
            raise ValueError("token_weights must not require grad: no gradient flows to them, pass .detach()")
    same_device(device, labels=labels, token_weights=token_weights)


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


def row_spec(
    *,
    kd_ratio: float,
    divergence: str,
    beta: float | None,
    temperature: float,
    teacher_temperature: float | None,
    t_squared: bool,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    vocab_size: int,
    labels: Tensor | None,
) -> LossSpec:
    """Check the arithmetic's numbers and fold them into a :class:`LossSpec`."""
    one_of("divergence", divergence, DIVERGENCES)
    ratio = number("kd_ratio", kd_ratio, 0.0, 1.0)
    student_t = number("temperature", temperature, 0.0, math.inf, open_low=True)
    teacher_t = student_t
    if teacher_temperature is not None:
        teacher_t = number("teacher_temperature", teacher_temperature, 0.0, math.inf, open_low=True)
    if ratio < 1 and labels is None:
        raise ValueError(
            f"kd_ratio={kd_ratio} gives cross-entropy a share, which needs labels (or pass kd_ratio=1)"
        )
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, int):
        raise TypeError(f"ignore_index must be an int, not {type(ignore_index).__name__}")
    mixture = 0.5
    if divergence == "jsd":
        mixture = number("beta", 0.5 if beta is None else beta, 0.0, 1.0)
        # The limits that TRL gives these two names; the formula itself tends to 0 there.
        if mixture == 0:
            divergence = "forward_kl"
        elif mixture == 1:
            divergence = "reverse_kl"
    return LossSpec(
        divergence=divergence,
        beta=mixture,
        temperature=student_t,
        teacher_temperature=teacher_t,
        kd_weight=ratio * (student_t * student_t if t_squared else 1.0),
        ce_weight=1.0 - ratio,
        label_smoothing=number("label_smoothing", label_smoothing, 0.0, 1.0),
        z_loss=number("z_loss", z_loss, 0.0, math.inf),
        ignore_index=ignore_index,
        vocab_size=vocab_size,
    )
