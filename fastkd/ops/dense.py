"""``fastkd::dense_kd`` and ``fastkd::scale_rows``: the fused loss on logits that the caller has."""

from __future__ import annotations

import torch
from torch import Tensor

from fastkd.backends import registry
from fastkd.ops.namespace import LIBRARY, NAMESPACE
from fastkd.ops.rows import as_rows, same_rows
from fastkd.ops.tokens import Tokens
from fastkd.spec import SPEC_SCHEMA, spec_of

DEVICES = ("CPU", "CUDA", "XPU", "MPS")

# `teacher` holds logits, or with `indices` the log-probabilities of a sparse teacher.
TEACHER_SCHEMA = (
    "Tensor? teacher, Tensor? indices, str? tail, Tensor? labels, Tensor loss_scale, Tensor? upstream"
)
# `upstream`, a number or (rows,), multiplies the gradients; it has the dtype of loss_scale.
# The caller allocates the results: `row_loss` (rows,) and `metrics` (rows, len(METRICS)) of the dtype of
# loss_scale. A gradient has its input's shape and dtype, is contiguous or has its input's strides, and is
# None if it is not wanted.
LIBRARY.define(
    f"dense_kd(Tensor student, {TEACHER_SCHEMA}, {SPEC_SCHEMA}, str? group, str? backend, "
    "Tensor(a!) row_loss, Tensor(b!)? metrics, Tensor(c!)? grad_student, Tensor(d!)? grad_teacher) -> ()",
)
LIBRARY.define("scale_rows(Tensor grad, Tensor factor, str? backend, Tensor(a!) out) -> ()")


def _dense_kd(
    student: Tensor,
    teacher: Tensor | None,
    indices: Tensor | None,
    tail: str | None,
    labels: Tensor | None,
    loss_scale: Tensor,
    upstream: Tensor | None,
    divergence: str,
    ignore_index: int,
    vocab_size: int,
    numbers: list[float],
    changing: Tensor | None,
    group: str | None,
    backend: str | None,
    row_loss: Tensor,
    metrics: Tensor | None,
    grad_student: Tensor | None,
    grad_teacher: Tensor | None,
) -> None:
    """Check the data, choose a backend and compute. ``grad_student`` may be ``student`` itself."""
    spec = spec_of((divergence, ignore_index, vocab_size), numbers, changing)
    given = teacher if indices is None else None
    runner = registry.choose(
        backend, student.device, student.dtype, loss_scale.dtype if given is None else given.dtype
    )
    columns = student.shape[-1]
    tokens = Tokens(labels, indices, teacher, tail, loss_scale, upstream, columns, spec, group, runner)
    rows = loss_scale.numel()
    if rows == 0:
        return
    by_teacher, direct = None, False
    if given is None:
        s = as_rows(student)
        if grad_teacher is not None:
            # The kernel computes it in the dtype of the arithmetic, and without a divergence not at all.
            direct = spec.kd_weight != 0 and grad_teacher.dtype == loss_scale.dtype
            direct = direct and grad_teacher.is_contiguous()
            shape = rows, grad_teacher.shape[-1]
            by_teacher = grad_teacher.view(shape) if direct else loss_scale.new_zeros(shape)
    else:
        s, given = same_rows(student, given)
        by_teacher = None if grad_teacher is None else grad_teacher.view(given.shape)
    by_student = None if grad_student is None else grad_student.view(s.shape)
    if grad_student is not student:
        runner.about_to_write(grad_student)
    runner.about_to_write(grad_teacher)
    runner.rows(tokens.call(0, rows, s, given, row_loss, by_student, by_teacher, metrics))
    if given is None and grad_teacher is not None and by_teacher is not None and not direct:
        grad_teacher.view(by_teacher.shape).copy_(by_teacher)


def _scale_rows(grad: Tensor, factor: Tensor, backend: str | None, out: Tensor) -> None:
    if grad.numel():
        given, into = same_rows(grad, out)
        registry.choose(backend, grad.device, grad.dtype).scale_rows(given, factor, into)


def no_results(*_: object) -> None:
    """The fake implementation of an op that returns nothing."""


for key in DEVICES:
    LIBRARY.impl("dense_kd", _dense_kd, key)
    LIBRARY.impl("scale_rows", _scale_rows, key)
for name in ("dense_kd", "scale_rows"):
    torch.library.register_fake(f"{NAMESPACE}::{name}", no_results, lib=LIBRARY)
