"""``fastkd::dense_kd`` and ``fastkd::scale_rows``: the fused loss on given logits."""

from __future__ import annotations

import torch
from torch import Tensor

from fastkd.backends import registry
from fastkd.ops.rows import same_rows
from fastkd.spec import LossSpec

# Ends every schema whose kernel computes rows; LossSpec's fields in their order.
SPEC_SCHEMA = (
    "str divergence, float beta, float temperature, float teacher_temperature, float kd_weight, "
    "float ce_weight, float label_smoothing, float z_loss, int ignore_index, int vocab_size"
)

LIBRARY = torch.library.Library("fastkd", "FRAGMENT")
LIBRARY.define(
    "dense_kd(Tensor student, Tensor teacher, Tensor? labels, Tensor loss_scale, Tensor? grad_scale, "
    f"bool student_grad, bool teacher_grad, str? backend, {SPEC_SCHEMA}) -> (Tensor, Tensor, Tensor)",
    tags=(torch.Tag.needs_exact_strides,),
)
LIBRARY.define("scale_rows(Tensor grad, Tensor factor, str? backend) -> Tensor")
LIBRARY.define("scale_rows_(Tensor(a!) grad, Tensor factor, str? backend) -> ()")


def check_labels(labels: Tensor | None, ignore_index: int, vocab_size: int) -> None:
    """Raise ``IndexError`` for a label outside the vocabulary, on CPU only: a GPU would have to wait."""
    if labels is None or labels.device.type != "cpu":
        return
    wrong = (labels != ignore_index) & ((labels < 0) | (labels >= vocab_size))
    if bool(wrong.any()):
        where = wrong.flatten().nonzero()[0]
        label = int(labels.flatten()[where])
        raise IndexError(
            f"label {label} at token {int(where)} is outside [0, {vocab_size}) and is not ignore_index "
            f"({ignore_index}): mask it with ignore_index or check the tokenizer against vocab_size"
        )


def _gradient_like(logits: Tensor, wanted: bool) -> Tensor:
    if not wanted:
        return logits.new_empty(0)
    return torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)


def _flat(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _dense_kd(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor | None,
    loss_scale: Tensor,
    grad_scale: Tensor | None,
    student_grad: bool,
    teacher_grad: bool,
    backend: str | None,
    *arithmetic: float | str,
) -> tuple[Tensor, Tensor, Tensor]:
    spec = LossSpec(*arithmetic)  # type: ignore[arg-type]
    check_labels(labels, spec.ignore_index, spec.vocab_size)
    runner = registry.choose(backend, student.device, student.dtype, teacher.dtype)
    row_loss = torch.empty_like(loss_scale)
    grad_student = _gradient_like(student, student_grad)
    grad_teacher = _gradient_like(teacher, teacher_grad)
    if row_loss.numel() == 0:
        return row_loss, grad_student, grad_teacher
    s, t = same_rows(student, teacher)
    runner.dense_rows(
        s,
        t,
        None if labels is None else labels.reshape(-1).contiguous(),
        loss_scale.contiguous(),
        (loss_scale if grad_scale is None else grad_scale).contiguous(),
        spec,
        row_loss,
        grad_student.view(s.shape) if student_grad else None,
        grad_teacher.view(t.shape) if teacher_grad else None,
    )
    return row_loss, grad_student, grad_teacher


def _dense_kd_fake(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor | None,
    loss_scale: Tensor,
    grad_scale: Tensor | None,
    student_grad: bool,
    teacher_grad: bool,
    backend: str | None,
    *arithmetic: float | str,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.empty_like(loss_scale),
        _gradient_like(student, student_grad),
        _gradient_like(teacher, teacher_grad),
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
    LIBRARY.impl("scale_rows", _scale_rows, key)
    LIBRARY.impl("scale_rows_", _scale_rows_in_place, key)
torch.library.register_fake("fastkd::dense_kd", _dense_kd_fake, lib=LIBRARY)
torch.library.register_fake(
    "fastkd::scale_rows", lambda grad, factor, backend: torch.empty_like(grad), lib=LIBRARY
)
torch.library.register_fake("fastkd::scale_rows_", lambda grad, factor, backend: None, lib=LIBRARY)
