"""``fastkd::dense_kd`` and ``fastkd::scale_rows``: the fused loss on given logits of the student."""

from __future__ import annotations

import torch
from torch import Tensor

from fastkd.backends import registry
from fastkd.ops.calls import SPEC_SCHEMA, Tokens
from fastkd.ops.rows import as_rows, same_rows
from fastkd.spec import METRICS, LossSpec

LIBRARY = torch.library.Library("fastkd", "FRAGMENT")
# `teacher` holds logits, or with `indices` the log-probabilities of a sparse teacher. The last result is
# (rows, len(METRICS)), or empty without `metrics`.
TEACHER_SCHEMA = (
    "Tensor teacher, Tensor? indices, str? tail, Tensor? labels, Tensor loss_scale, Tensor? grad_scale"
)
LIBRARY.define(
    f"dense_kd(Tensor student, {TEACHER_SCHEMA}, bool student_grad, bool teacher_grad, bool metrics, "
    f"str? group, str? backend, {SPEC_SCHEMA}) -> (Tensor, Tensor, Tensor, Tensor)",
)
LIBRARY.define(
    f"dense_kd_(Tensor(a!) student, {TEACHER_SCHEMA}, bool teacher_grad, bool metrics, "
    f"str? group, str? backend, {SPEC_SCHEMA}) -> (Tensor, Tensor, Tensor)"
)
LIBRARY.define("scale_rows(Tensor grad, Tensor factor, str? backend) -> Tensor")
LIBRARY.define("scale_rows_(Tensor(a!) grad, Tensor factor, str? backend) -> ()")


def _flat(x: Tensor) -> Tensor:
    return x.reshape(x.shape[:-1].numel(), x.shape[-1])


def _run(
    student: Tensor,
    teacher: Tensor,
    indices: Tensor | None,
    tail: str | None,
    labels: Tensor | None,
    loss_scale: Tensor,
    grad_scale: Tensor | None,
    student_grad: bool,
    teacher_grad: bool,
    metrics: bool,
    group: str | None,
    backend: str | None,
    arithmetic: tuple[float | str, ...],
    in_place: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Check, choose a backend and compute; ``in_place`` the student's gradient is ``student`` itself."""
    spec = LossSpec(*arithmetic)  # type: ignore[arg-type]
    tokens = Tokens(labels, indices, teacher, tail, loss_scale, grad_scale, student.shape[-1], spec, group)
    sparse = indices is not None
    runner = registry.choose(
        backend, student.device, student.dtype, loss_scale.dtype if sparse else teacher.dtype
    )
    rows = loss_scale.numel()
    row_loss = torch.empty_like(loss_scale)
    found = loss_scale.new_empty((rows, len(METRICS)) if metrics else 0)
    by_student = student if in_place else student.new_empty(0)
    if student_grad and not in_place:
        by_student = runner.empty(student.shape, student)
    by_teacher = teacher.new_empty(0)
    if teacher_grad:
        by_teacher = (
            torch.zeros_like(teacher, memory_format=torch.contiguous_format)
            if sparse
            else (runner.empty(teacher.shape, teacher))
        )
    if rows == 0:
        return row_loss, by_student, by_teacher, found
    given = None
    if sparse:
        s = as_rows(student)
        into = None if not teacher_grad else loss_scale.new_zeros(rows, teacher.shape[-1])
    else:
        s, given = same_rows(student, teacher)
        into = by_teacher.view(given.shape) if teacher_grad else None
    runner.rows(
        tokens.call(
            0,
            rows,
            s,
            given,
            row_loss,
            (s if in_place else by_student.view(s.shape)) if student_grad else None,
            into,
            found if metrics else None,
        )
    )
    if sparse and into is not None:
        by_teacher.view(into.shape).copy_(into)
    return row_loss, by_student, by_teacher, found


def _dense_kd(
    student: Tensor,
    teacher: Tensor,
    indices: Tensor | None,
    tail: str | None,
    labels: Tensor | None,
    loss_scale: Tensor,
    grad_scale: Tensor | None,
    student_grad: bool,
    teacher_grad: bool,
    metrics: bool,
    group: str | None,
    backend: str | None,
    *arithmetic: float | str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    source = (teacher, indices, tail, labels, loss_scale, grad_scale)
    return _run(student, *source, student_grad, teacher_grad, metrics, group, backend, arithmetic, False)


def _dense_kd_in_place(
    student: Tensor,
    teacher: Tensor,
    indices: Tensor | None,
    tail: str | None,
    labels: Tensor | None,
    loss_scale: Tensor,
    grad_scale: Tensor | None,
    teacher_grad: bool,
    metrics: bool,
    group: str | None,
    backend: str | None,
    *arithmetic: float | str,
) -> tuple[Tensor, Tensor, Tensor]:
    source = (teacher, indices, tail, labels, loss_scale, grad_scale)
    row_loss, _, by_teacher, found = _run(
        student, *source, True, teacher_grad, metrics, group, backend, arithmetic, True
    )
    return row_loss, by_teacher, found


def _fake_gradient(logits: Tensor, wanted: bool) -> Tensor:
    return logits.new_empty(logits.shape if wanted else 0)


def fake_metrics(loss_scale: Tensor, wanted: bool) -> Tensor:
    return loss_scale.new_empty((loss_scale.numel(), len(METRICS)) if wanted else 0)


def _dense_kd_fake(
    student: Tensor,
    teacher: Tensor,
    indices: Tensor | None,
    tail: str | None,
    labels: Tensor | None,
    loss_scale: Tensor,
    grad_scale: Tensor | None,
    student_grad: bool,
    teacher_grad: bool,
    metrics: bool,
    group: str | None,
    backend: str | None,
    *arithmetic: float | str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        torch.empty_like(loss_scale),
        _fake_gradient(student, student_grad),
        _fake_gradient(teacher, teacher_grad),
        fake_metrics(loss_scale, metrics),
    )


def _dense_kd_in_place_fake(
    student: Tensor,
    teacher: Tensor,
    indices: Tensor | None,
    tail: str | None,
    labels: Tensor | None,
    loss_scale: Tensor,
    grad_scale: Tensor | None,
    teacher_grad: bool,
    metrics: bool,
    group: str | None,
    backend: str | None,
    *arithmetic: float | str,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.empty_like(loss_scale),
        _fake_gradient(teacher, teacher_grad),
        fake_metrics(loss_scale, metrics),
    )


def _scale_rows(grad: Tensor, factor: Tensor, backend: str | None) -> Tensor:
    out = torch.empty_like(grad)
    if grad.numel():
        registry.choose(backend, grad.device, grad.dtype).scale_rows(_flat(grad), factor, _flat(out))
    return out


def _scale_rows_in_place(grad: Tensor, factor: Tensor, backend: str | None) -> None:
    if grad.numel():
        rows = _flat(grad)
        registry.choose(backend, grad.device, grad.dtype).scale_rows(rows, factor, rows)


for key in ("CPU", "CUDA", "XPU", "MPS"):
    LIBRARY.impl("dense_kd", _dense_kd, key)
    LIBRARY.impl("dense_kd_", _dense_kd_in_place, key)
    LIBRARY.impl("scale_rows", _scale_rows, key)
    LIBRARY.impl("scale_rows_", _scale_rows_in_place, key)
torch.library.register_fake("fastkd::dense_kd", _dense_kd_fake, lib=LIBRARY)
torch.library.register_fake("fastkd::dense_kd_", _dense_kd_in_place_fake, lib=LIBRARY)
torch.library.register_fake(
    "fastkd::scale_rows", lambda grad, factor, backend: torch.empty_like(grad), lib=LIBRARY
)
torch.library.register_fake("fastkd::scale_rows_", lambda grad, factor, backend: None, lib=LIBRARY)
