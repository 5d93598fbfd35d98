"""Launches the kernel of the loss, given its tensors and a LossSpec."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from fastkd.backends.base import Call
from fastkd.backends.kernels import Phase
from fastkd.backends.triton import host, tuning
from fastkd.backends.triton.divergences import Formulas, formulas_of
from fastkd.backends.triton.kernel import dense_rows_kernel
from fastkd.backends.triton.shapes import RECORDING, Shape, usual
from fastkd.backends.triton.terms import Terms
from fastkd.backends.triton.tuning import Run
from fastkd.spec import LossSpec

LOG2E = math.log2(math.e)
# Scratch tensors for tuning: enough rows to fill a GPU several times, in at most this much memory.
SCRATCH_BYTES = 2**30
SCRATCH_ROWS = 4096


def powers_of(spec: LossSpec, formulas: Formulas) -> tuple[float, float]:
    """``Scales.a`` and ``Scales.b``."""
    if formulas.divergence is not None and formulas.divergence.cross:
        a, b = formulas.divergence.streams(spec.alpha, spec.beta)[0]
        return float(a), float(b)  # the launcher compiles variants for integers
    return 1.0 - spec.beta, spec.beta


def _scratch(call: Call) -> Callable[[], Run]:
    """A function that makes random logits like those of ``call`` and returns a run of loss and gradient."""

    def make() -> Run:
        teacher = call.teacher
        assert isinstance(teacher, Tensor)
        vocab, device = call.spec.vocab_size, call.student.device
        row = vocab * (2 * call.student.element_size() + teacher.element_size())
        rows = max(1, min(SCRATCH_ROWS, min(SCRATCH_BYTES, torch.cuda.mem_get_info(device)[0] // 4) // row))
        generator = torch.Generator(device).manual_seed(0)  # leaves the user's own generator alone

        def logits(dtype: torch.dtype) -> Tensor:
            return torch.randn(1, rows, vocab, dtype=dtype, device=device, generator=generator)

        ones = torch.ones(rows, device=device)
        student = logits(call.student.dtype)
        like = replace(
            call,
            student=student,
            teacher=logits(teacher.dtype),
            labels=torch.arange(rows, device=device) % vocab,
            loss_scale=ones,
            grad_scale=ones,
            row_loss=torch.empty_like(ones),
            grad_student=torch.empty_like(student),
            grad_teacher=None,
            metrics=None,
            upstream=None,
        )
        return lambda shape: _launch(like, "all", None, None, shape)

    return make


def dense_rows(call: Call, phase: Phase, record: Tensor | None, coefficient: Tensor | None) -> None:
    """See ``KernelBackend.launch``."""
    if call.row_loss.numel() == 0:
        return
    formulas = formulas_of(call.spec)
    vocab = call.spec.vocab_size
    with host.on(call.student.device):
        if phase != "all" or call.metrics is not None:
            shape = RECORDING
        elif formulas.reads_teacher and vocab > 0:
            assert isinstance(call.teacher, Tensor)
            dtypes = f"{call.student.dtype}, {call.teacher.dtype}".replace("torch.", "")
            shape = tuning.choose(call.student.device, formulas, dtypes, vocab, _scratch(call))
        else:
            shape = usual(formulas, vocab)
        _launch(call, phase, record, coefficient, shape)


def terms_of(call: Call, phase: Phase, sparse: bool = False) -> tuple[Terms, float]:
    """The terms of the loss, and the student's temperature in the kernel."""
    spec, labels, metrics = call.spec, call.labels is not None, call.metrics is not None
    cross_entropy = spec.ce_weight != 0 and labels
    # Without a divergence only a metric, the entropy, needs the student's temperature.
    temperature = spec.temperature if spec.kd_weight != 0 or metrics else 1.0
    terms = Terms(
        phase=phase,
        sharded=call.shards is not None,
        labels=labels,
        metrics=metrics,
        cross_entropy=cross_entropy,
        smoothing=spec.label_smoothing != 0 and labels and (cross_entropy or metrics),
        z_loss=spec.z_loss != 0,
        power={1.0: 1, 2.0: 2}.get(temperature, 0),
        sparse=sparse,
    )
    return terms, temperature


def _launch(
    call: Call, phase: Phase, record: Tensor | None, coefficient: Tensor | None, shape: Shape
) -> None:
    spec, student = call.spec, call.student
    outer, inner, student_columns = student.shape
    formulas = formulas_of(call.spec)
    teacher = call.teacher if formulas.reads_teacher else None
    assert teacher is None or isinstance(teacher, Tensor)
    grad_student, grad_teacher = call.grad_student, call.grad_teacher
    if phase in ("statistics", "sums", "distant"):
        grad_student = grad_teacher = None
    elif teacher is None and grad_teacher is not None:
        grad_teacher.zero_()
        grad_teacher = None
    terms, temperature = terms_of(call, phase)
    width = 16 // max(x.element_size() for x in (student, teacher) if x is not None)
    out_s, out_t = host.Rounded(grad_student), host.Rounded(grad_teacher)
    strides = {
        "_S": host.strides_of(student),
        "_T": host.strides_of(teacher),
        "_GS": host.strides_of(out_s.buffer),
        "_GT": host.strides_of(out_t.buffer),
    }
    dense_rows_kernel[(outer * inner,)](
        student,
        teacher,
        call.labels,
        call.loss_scale,
        call.grad_scale,
        call.upstream,
        call.row_loss,
        out_s.buffer,
        out_t.buffer,
        call.metrics,
        record,
        coefficient,
        *(number for of_tensor in strides.values() for number in of_tensor),
        inner,
        0 if call.upstream is None else call.upstream.stride(0),
        spec.vocab_size,
        student_columns,
        0 if teacher is None else teacher.shape[2],
        spec.ignore_index,
        LOG2E / temperature,
        LOG2E / spec.teacher_temperature,
        1.0 / temperature,
        temperature / spec.teacher_temperature,
        *powers_of(spec, formulas),
        spec.kd_weight,
        spec.kd_metric,
        spec.kd_weight / temperature,
        spec.kd_weight / spec.teacher_temperature,
        spec.ce_weight if terms.cross_entropy else 0.0,
        spec.label_smoothing,
        spec.z_loss,
        DIVERGENCE=formulas,
        TERMS=terms,
        **host.alignment(width, student_columns, strides),
        **shape.tile(16 // width),
        **host.options_here(shape),
    )
    out_s.finish()
    out_t.finish()
