"""Launches the kernel of the loss for a sparse teacher."""

from __future__ import annotations

import triton

from fastkd.backends.base import Call, SparseRows
from fastkd.backends.sparse import has_rest
from fastkd.backends.triton import host
from fastkd.backends.triton.divergences import OFF_SUPPORT, formulas_of
from fastkd.backends.triton.launch import LOG2E, powers_of, terms_of
from fastkd.backends.triton.shapes import RECORDING
from fastkd.backends.triton.sparse_kernel import sparse_rows_kernel
from fastkd.backends.triton.terms import CLASS_TERMS

# A sparse teacher's entries, with one more class, take one tile of a program. About this many pairs of them
# are compared at once.
MAX_ENTRIES = 511
COMPARED = 2048


def class_tile(entries: int) -> dict[str, int]:
    """The constants ``CLASSES`` and ``CHUNK`` of the kernel for a sparse teacher."""
    classes = triton.next_power_of_2(entries + 1)
    return {"CLASSES": classes, "CHUNK": min(classes, COMPARED // classes)}


def sparse_rows(call: Call) -> None:
    """``KernelBackend.launch`` of a sparse teacher, in the phase ``"all"``."""
    teacher, spec, student = call.teacher, call.spec, call.student
    assert isinstance(teacher, SparseRows)
    if call.row_loss.numel() == 0:
        return
    outer, inner, student_columns = student.shape
    entries, formulas = teacher.indices.shape[1], formulas_of(spec)
    terms, temperature = terms_of(call, "all", sparse=True)
    width = 16 // student.element_size()
    out = host.Rounded(call.grad_student)
    strides = {"_S": host.strides_of(student), "_GS": host.strides_of(out.buffer)}
    with host.on(student.device):
        sparse_rows_kernel[(outer * inner,)](
            student,
            teacher.indices,
            teacher.logprobs,
            call.labels,
            call.loss_scale,
            call.grad_scale,
            call.upstream,
            call.row_loss,
            out.buffer,
            teacher.grad,
            call.metrics,
            *(number for of_tensor in strides.values() for number in of_tensor),
            inner,
            0 if call.upstream is None else call.upstream.stride(0),
            spec.vocab_size,
            student_columns,
            entries,
            spec.ignore_index,
            LOG2E / temperature,
            1.0 / temperature,
            LOG2E / teacher.class_temperature,
            LOG2E / spec.teacher_temperature,
            1.0 / teacher.class_temperature,
            1.0 / spec.teacher_temperature,
            teacher.class_temperature / spec.teacher_temperature,
            *powers_of(spec, formulas),
            spec.kd_weight,
            spec.kd_metric,
            spec.kd_weight / temperature,
            spec.ce_weight if terms.cross_entropy else 0.0,
            spec.label_smoothing,
            spec.z_loss,
            teacher.most_mass,
            DIVERGENCE=formulas,
            STUDENT=OFF_SUPPORT,
            TERMS=terms,
            CLASS_TERMS=CLASS_TERMS,
            TAIL=teacher.tail,
            HAS_REST=has_rest(teacher.tail, spec),
            **class_tile(entries),
            **host.alignment(width, student_columns, strides),
            **RECORDING.tile(student.element_size()),
            **host.options_here(RECORDING),
        )
    out.finish()
