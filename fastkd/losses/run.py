"""The common path of both losses: checks, the choice of the autograd function, and the reduction."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastkd.losses import checks, reduction as reductions
from fastkd.losses.autograd import Deferred, Fused, Overwrite, Overwritten, Transformed, under_transforms
from fastkd.losses.classes import Term, by_class
from fastkd.losses.metrics import metrics_of
from fastkd.losses.options import Options
from fastkd.losses.request import DIFFERENTIABLE, NO_GRADIENT, HeadScales, Inputs, Request
from fastkd.losses.sides import Side, subset_of, teacher_side
from fastkd.ops.columns import select
from fastkd.ops.rows import wide


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
    source = teacher_side(teacher, leading, device, options)
    if options.teacher_columns is not None:
        source = subset_of(source, student.columns, options)
    theirs = student.columns if source.subset is not None else source.columns
    columns, group = checks.shards(student.columns, theirs, options.vocab_size, options.group)
    soft = checks.are_soft(labels, leading)
    checks.per_token(None if soft else labels, options.token_weights, leading, device)
    spec = options.check(columns)
    checks.needs_labels(options.divergence, options.kd_ratio, labels)
    if soft or options.class_weights is not None:
        terms = by_class(student.tensor, student.columns, source, labels, options, spec)
    else:
        tokens = options.reduction, labels, options.ignore_index, options.token_weights, options.num_items
        dtype = wide(student.tensor, source.tensor)
        scale = reductions.row_scale(*tokens, student.tensor, dtype, options.backend)
        terms = [Term(spec, source, labels, scale)]
    loss: Tensor | None = None
    metrics: Tensor | None = None
    for term in terms:
        side, heads = term.teacher, None
        if student.weight is not None or side.weight is not None or side.subset is not None:
            heads = HeadScales(student.scale, student.softcap, side.scale, side.softcap)
        request = Request(
            spec=term.spec,
            tail=side.tail,
            per_token=options.reduction == "none",
            metrics=options.return_metrics,
            row_metrics=len(terms) > 1,
            head_scales=heads,
            teacher_rest=side.rest,
            chunk_size=chunk_size,
            group=group,
            backend=options.backend,
        )
        inputs = term.inputs(student)
        found, rows = _apply(request, inputs, student, side, inplace and len(terms) == 1)
        found = term.complete(found, request.per_token)
        loss = found if loss is None else loss + found
        if rows is not None:
            metrics = rows if metrics is None else term.metrics(rows, metrics)
    assert loss is not None
    if options.reduction == "none":
        loss = loss.view(leading)
    if metrics is None:
        return loss
    if len(terms) > 1:
        _, metrics = reductions.totals(None, metrics, terms[0].scale, options.backend)
        assert metrics is not None
    return loss, metrics_of(metrics)


def _apply(
    request: Request, inputs: Inputs, student: Side, teacher: Side, inplace: bool
) -> tuple[Tensor, Tensor | None]:
    """The loss, ``(rows,)`` or their sum, in autograd's graph, and the metrics of the rows."""
    wanted = NO_GRADIENT
    if torch.is_grad_enabled():
        wanted = tuple([x is not None and x.requires_grad for x in tuple(inputs)[:DIFFERENTIABLE]])
    if under_transforms():
        return _transformed(request, inputs, student, teacher)
    if True not in wanted:
        return request.totals(inputs, request.compute(inputs, wanted))
    return _with_gradients(request, wanted, inputs, inplace)


def _with_gradients(
    request: Request, wanted: tuple[bool, ...], inputs: Inputs, inplace: bool
) -> tuple[Tensor, Tensor | None]:
    # The op writes the gradient of given logits in their dtype, so a float16 one has to wait for the upstream
    # gradient (Deferred). A head's gradients are sums, which are float32 until then.
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
    # The op gets whole logits, which plain torch computes; as float32 if a gradient may not fit float16.
    s, t = student.logits(), teacher.logits()
    assert s is not None
    s = s.float() if s.dtype == torch.float16 else s
    t = t.float() if t is not None and t.dtype == torch.float16 else t
    if teacher.subset is not None and t is not None:
        vocab = request.spec.vocab_size
        t = select(t, teacher.subset[:vocab], request.spec.teacher_temperature if teacher.rest else None)
        if teacher.rest:
            s = torch.nn.functional.pad(s[..., :vocab], (0, 1), value=-math.inf)
            request = request._replace(spec=request.spec._replace(vocab_size=vocab + 1))
    inputs = inputs._replace(
        student=s,
        student_weight=None,
        student_bias=None,
        teacher=t,
        teacher_weight=None,
        teacher_bias=None,
        teacher_columns=None,
    )
    request = request._replace(head_scales=None, chunk_size=None)
    # Forward-mode AD needs the gradients, too, and does not announce which inputs have tangents.
    wanted = (True, False, False, t is not None, False, False)
    loss, metrics, *_ = Transformed.apply(request, wanted, *inputs)
    return loss, metrics if request.metrics else None
