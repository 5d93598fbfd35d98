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
)
LIBRARY.define(
    "dense_kd_(Tensor(a!) student, Tensor teacher, Tensor? labels, Tensor loss_scale, Tensor? grad_scale, "
    f"bool teacher_grad, str? backend, {SPEC_SCHEMA}) -> (Tensor, Tensor)"
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


def _gradient_like(logits: Tensor, wanted: bool, backend: str | None) -> Tensor:
    if not wanted:
        return logits.new_empty(0)
    return registry.choose(backend, logits.device, logits.dtype).empty(logits.shape, logits)


def _fake_gradient(logits: Tensor, wanted: bool) -> Tensor:
    return logits.new_empty(logits.shape if wanted else 0)


def _flat(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _rows_of_gradient(grad: Tensor | None, logits: Tensor, rows: Tensor) -> Tensor | None:
    if grad is None or grad is logits:
        return None if grad is None else rows
    return grad.view(rows.shape)


def _run(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor | None,
    loss_scale: Tensor,
    grad_scale: Tensor | None,
    grad_student: Tensor | None,
    grad_teacher: Tensor | None,
    backend: str | None,
    arithmetic: tuple[float | str, ...],
) -> Tensor:
    """Check, choose a backend and fill the gradients; ``grad_student`` may be ``student`` itself."""
    spec = LossSpec(*arithmetic)  # type: ignore[arg-type]
    check_labels(labels, spec.ignore_index, spec.vocab_size)
    runner = registry.choose(backend, student.device, student.dtype, teacher.dtype)
    row_loss = torch.empty_like(loss_scale)
    if row_loss.numel() == 0:
        return row_loss
    s, t = same_rows(student, teacher)
    runner.dense_rows(
        s,
        t,
        None if labels is None else labels.reshape(-1).contiguous(),
        loss_scale.contiguous(),
        (loss_scale if grad_scale is None else grad_scale).contiguous(),
        spec,
        row_loss,
        _rows_of_gradient(grad_student, student, s),
        None if grad_teacher is None else grad_teacher.view(t.shape),
    )
    return row_loss


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
    by_student = _gradient_like(student, student_grad, backend)
    by_teacher = _gradient_like(teacher, teacher_grad, backend)
    wanted = by_student if student_grad else None, by_teacher if teacher_grad else None
    row_loss = _run(student, teacher, labels, loss_scale, grad_scale, *wanted, backend, arithmetic)
    return row_loss, by_student, by_teacher


def _dense_kd_in_place(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor | None,
    loss_scale: Tensor,
    grad_scale: Tensor | None,
    teacher_grad: bool,
    backend: str | None,
    *arithmetic: float | str,
) -> tuple[Tensor, Tensor]:
    by_teacher = _gradient_like(teacher, teacher_grad, backend)
    wanted = student, by_teacher if teacher_grad else None
    row_loss = _run(student, teacher, labels, loss_scale, grad_scale, *wanted, backend, arithmetic)
    return row_loss, by_teacher


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
        _fake_gradient(student, student_grad),
        _fake_gradient(teacher, teacher_grad),
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


def _dense_kd_in_place_fake(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor | None,
    loss_scale: Tensor,
    grad_scale: Tensor | None,
    teacher_grad: bool,
    backend: str | None,
    *arithmetic: float | str,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(loss_scale), _fake_gradient(teacher, teacher_grad)


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
