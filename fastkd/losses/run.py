"""The common path of both losses: checks, the choice of how gradients are made, and the reduction."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastkd.losses import checks, reduction as reductions
from fastkd.losses.autograd import Deferred, Fused, Overwrite, Overwritten, Transformed, under_transforms
from fastkd.losses.metrics import mean_metrics
from fastkd.losses.options import Options
from fastkd.losses.request import DIFFERENTIABLE, NO_GRADIENT, HeadScales, Inputs, Request
from fastkd.ops.rows import wide
from fastkd.teachers import HiddenTeacher, SparseTeacher


class Side(NamedTuple):
    """One model's distributions, checked: logits, or hidden states and a head, or a sparse teacher.

    Attributes:
        tensor: ``(..., V)``, ``(..., H)`` or ``(..., K)``; None for no teacher.
        columns: how many columns the logits have; None where that is not known.
    """

    tensor: Tensor | None
    weight: Tensor | None = None
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    indices: Tensor | None = None
    tail: str | None = None
    columns: int | None = None

    def logits(self) -> Tensor | None:
        """The whole logits in plain torch, where ``tensor`` does not hold them."""
        if self.weight is None or self.tensor is None:
            return self.tensor
        logits = torch.nn.functional.linear(self.tensor, self.weight, self.bias) * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


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


def _teacher_side(teacher: Any, leading: torch.Size, device: torch.device, options: Options) -> Side:
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
        checks.sparse_teacher(teacher, leading, device, options.divergence, *temperatures)
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


def run(
    student: Side,
    teacher: Any,
    labels: Tensor | None,
    options: Options,
    *,
    inplace: bool = False,
    chunk_size: int | None = None,
) -> Any:
    """The loss of :func:`fastkd.kd_loss` or :func:`fastkd.linear_kd_loss`, with their results and errors."""
    assert student.tensor is not None and student.columns is not None
    leading, device = student.tensor.shape[:-1], student.tensor.device
    checks.same_device(device, student_weight=student.weight, student_bias=student.bias)
    source = _teacher_side(teacher, leading, device, options)
    checks.per_token(labels, options.token_weights, leading, device)
    columns, group = checks.shards(student.columns, source.columns, options.vocab_size, options.group)
    spec = options.check(columns)
    checks.needs_labels(options.divergence, options.kd_ratio, labels)
    tokens = options.reduction, labels, options.ignore_index, options.token_weights, options.num_items
    scale = reductions.row_scale(*tokens, student.tensor, wide(student.tensor, source.tensor))
    inputs = Inputs(*tuple(student)[:3], *tuple(source)[:3], source.indices, labels, scale)  # type: ignore[arg-type, call-arg]
    heads = None
    if student.weight is not None or source.weight is not None:
        heads = HeadScales(student.scale, student.softcap, source.scale, source.softcap)
    request = Request(
        spec=spec,
        tail=source.tail,
        per_token=options.reduction == "none",
        metrics=options.return_metrics,
        head_scales=heads,
        chunk_size=chunk_size,
        group=group,
        backend=options.backend,
    )
    wanted = NO_GRADIENT
    if torch.is_grad_enabled():
        wanted = tuple([x is not None and x.requires_grad for x in tuple(inputs)[:DIFFERENTIABLE]])
    if under_transforms():
        loss, metrics = _transformed(request, inputs, student, source)
    elif True not in wanted:
        results = request.compute(inputs, wanted)
        loss, metrics = results.row_loss, results.metrics
        loss = loss if request.per_token else loss.sum()
    else:
        loss, metrics = _with_gradients(request, wanted, inputs, inplace)
    if request.per_token:
        loss = loss.view(leading)
    if metrics is None:
        return loss
    counted = reductions.valid(labels, options.ignore_index, options.token_weights, student.tensor)
    return loss, mean_metrics(metrics, counted)


def _with_gradients(
    request: Request, wanted: tuple[bool, ...], inputs: Inputs, inplace: bool
) -> tuple[Tensor, Tensor | None]:
    # The gradient by given logits is final as the op writes it; a head's is a sum, which waits in float32.
    final = (inputs.student, inputs.student_weight), (inputs.teacher, inputs.teacher_weight)
    half = any(
        want and weight is None and x is not None and x.dtype == torch.float16
        for want, (x, weight) in zip((wanted[0], wanted[3]), final, strict=True)
    )
    inplace = inplace and wanted[0] and not torch.compiler.is_compiling()
    if inplace:
        checks.overwritable(inputs.student)
    if half or (request.per_token and request.head_scales is not None):
        loss, metrics, _ = Deferred.apply(request, wanted, inplace, *inputs)
        return loss, metrics if request.metrics else None
    overwritten = Overwritten(inputs.student.detach()) if inplace else None
    loss, metrics, _ = Fused.apply(request, wanted, overwritten, *inputs)
    if overwritten is not None:
        base = inputs.student._base
        Overwrite.apply(inputs.student if base is None else base)
        overwritten.version = overwritten.logits._version
    return loss, metrics if request.metrics else None


def _transformed(
    request: Request, inputs: Inputs, student: Side, teacher: Side
) -> tuple[Tensor, Tensor | None]:
    # On whole logits, in plain torch up to them, and in float32 where a gradient may not fit float16.
    s, t = student.logits(), teacher.logits()
    assert s is not None
    s = s.float() if s.dtype == torch.float16 else s
    t = t.float() if t is not None and t.dtype == torch.float16 else t
    inputs = inputs._replace(
        student=s, student_weight=None, student_bias=None, teacher=t, teacher_weight=None, teacher_bias=None
    )
    request = request._replace(head_scales=None, chunk_size=None)
    # Forward-mode AD takes the gradients, too, and does not say beforehand whose.
    wanted = (True, False, False, t is not None, False, False)
    loss, metrics, *_ = Transformed.apply(request, wanted, *inputs)
    return loss, metrics if request.metrics else None
