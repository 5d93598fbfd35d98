"""The host side: turns tensors and a LossSpec into kernel launches."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import triton
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction

from fastkd.backends.base import Call, SparseRows, Weighing
from fastkd.backends.kernels import Phase
from fastkd.backends.sparse import has_rest
from fastkd.backends.triton import tuning
from fastkd.backends.triton.divergences import OFF_SUPPORT, Formulas, formulas_of
from fastkd.backends.triton.kernel import dense_rows_kernel
from fastkd.backends.triton.reduction import row_weights_kernel, totals_kernel
from fastkd.backends.triton.scale import scale_rows_kernel
from fastkd.backends.triton.shapes import RECORDING, SCALE, TOTALS, WEIGHTS, Shape, usual
from fastkd.backends.triton.sparse_kernel import sparse_rows_kernel
from fastkd.backends.triton.terms import CLASS_TERMS, Terms
from fastkd.backends.triton.tuning import Run
from fastkd.spec import METRICS, LossSpec

INTERPRETED = isinstance(dense_rows_kernel, InterpretedFunction)

LOG2E = math.log2(math.e)
# Scratch tensors for tuning: enough rows to fill a GPU several times, in at most this much memory.
SCRATCH_BYTES = 2**30
SCRATCH_ROWS = 4096
METRICS_PLACES = triton.next_power_of_2(len(METRICS))
# A sparse teacher's entries, with one more class, take one tile of a program. About this many pairs of them
# are compared at once.
MAX_ENTRIES = 511
COMPARED = 2048
# Programs that scale gradients: a few times what any GPU runs at once, since each ends after one number where
# nothing is to be scaled.
SCALE_PROGRAMS = 4096


def options(shape: Shape, backend: str, warp_size: int) -> dict[str, Any]:
    """Compiler options of every launch. Automatic fusion of multiply and add is off, so that equal logits
    give equal intermediate results; the kernels call ``fma`` where they need it."""
    found: dict[str, Any] = {"num_warps": shape.threads // warp_size, "enable_fp_fusion": False}
    if backend == "cuda":
        # By default the compiler aims at fewer registers and spills values that live across the sweeps.
        found["maxnreg"] = shape.registers
    return found


def _options(shape: Shape) -> dict[str, Any]:
    if INTERPRETED:
        return {}
    target = triton.runtime.driver.active.get_current_target()
    return options(shape, target.backend, target.warp_size)


def _on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Make ``device`` current, because a launch uses the current stream of the current device."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def _strides(x: Tensor | None) -> tuple[int, int, int]:
    """Element strides of a 3-D tensor. A row dimension of size 1 gets stride 0: its own stride is arbitrary,
    and an odd one would cost the kernel its wide accesses."""
    if x is None:
        return 0, 0, 0
    outer, inner, column = (
        0 if size == 1 else stride for size, stride in zip(x.shape, x.stride(), strict=True)
    )
    return outer, inner, column if x.shape[2] > 1 else 1


def alignment(width: int, columns: int, strides: dict[str, tuple[int, int, int]]) -> dict[str, bool]:
    """The constants ``PHASED`` and ``WIDE_*`` of the kernels.

    Args:
        width: elements per access.
        columns: width of the first tensor.
        strides: the strides of each tensor, by the suffix of its constant; those of the first tensor first.
    """
    phases = {
        name: (outer % width, inner % width) if column == 1 else None
        for name, (outer, inner, column) in strides.items()
    }
    first = next(iter(phases.values()))
    phased = first is not None and (any(first) or columns % width != 0)
    wanted = (0, 0) if first is None else first
    return {"PHASED": phased, **{f"WIDE{name}": phase == wanted for name, phase in phases.items()}}


class _Rounded:
    """A float32 stand-in for a bfloat16 output, since Triton's interpreter truncates where GPUs round."""

    def __init__(self, out: Tensor | None) -> None:
        self.out = out
        self.buffer = out
        if INTERPRETED and out is not None and out.dtype == torch.bfloat16:
            self.buffer = torch.empty_like(out, dtype=torch.float32)

    def finish(self) -> None:
        if self.out is not None and self.buffer is not None and self.buffer is not self.out:
            self.out.copy_(self.buffer)


def _powers(spec: LossSpec, formulas: Formulas) -> tuple[float, float]:
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
        )
        return lambda shape: _launch(like, "all", None, None, shape)

    return make


def dense_rows(call: Call, phase: Phase, record: Tensor | None, coefficient: Tensor | None) -> None:
    """See ``KernelBackend.launch``."""
    if call.row_loss.numel() == 0:
        return
    formulas = formulas_of(call.spec)
    vocab = call.spec.vocab_size
    with _on(call.student.device):
        if phase != "all" or call.metrics is not None:
            shape = RECORDING
        elif formulas.reads_teacher and vocab > 0:
            assert isinstance(call.teacher, Tensor)
            dtypes = f"{call.student.dtype}, {call.teacher.dtype}".replace("torch.", "")
            shape = tuning.choose(call.student.device, formulas, dtypes, vocab, _scratch(call))
        else:
            shape = usual(formulas, vocab)
        _launch(call, phase, record, coefficient, shape)


def _terms(call: Call, phase: Phase, sparse: bool = False) -> tuple[Terms, float]:
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
    terms, temperature = _terms(call, phase)
    width = 16 // max(x.element_size() for x in (student, teacher) if x is not None)
    out_s, out_t = _Rounded(grad_student), _Rounded(grad_teacher)
    strides = {
        "_S": _strides(student),
        "_T": _strides(teacher),
        "_GS": _strides(out_s.buffer),
        "_GT": _strides(out_t.buffer),
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
        *_powers(spec, formulas),
        spec.kd_weight,
        spec.kd_metric,
        spec.kd_weight / temperature,
        spec.kd_weight / spec.teacher_temperature,
        spec.ce_weight if terms.cross_entropy else 0.0,
        spec.label_smoothing,
        spec.z_loss,
        DIVERGENCE=formulas,
        TERMS=terms,
        **alignment(width, student_columns, strides),
        **shape.tile(16 // width),
        **_options(shape),
    )
    out_s.finish()
    out_t.finish()


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
    terms, temperature = _terms(call, "all", sparse=True)
    width = 16 // student.element_size()
    out = _Rounded(call.grad_student)
    strides = {"_S": _strides(student), "_GS": _strides(out.buffer)}
    with _on(student.device):
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
            *_powers(spec, formulas),
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
            **alignment(width, student_columns, strides),
            **RECORDING.tile(student.element_size()),
            **_options(RECORDING),
        )
    out.finish()


def scale_rows(grad: Tensor, factor: Tensor, out: Tensor) -> None:
    """See ``Backend.scale_rows``."""
    columns = grad.shape[2]
    if grad.numel() == 0:
        return
    result = _Rounded(out)
    assert result.buffer is not None
    strides = {"": _strides(grad), "_OUT": _strides(result.buffer)}
    assert strides[""][2] == strides["_OUT"][2] == 1, "a row is not contiguous"
    with _on(grad.device):
        scale_rows_kernel[(min(factor.numel(), SCALE_PROGRAMS),)](
            grad,
            factor,
            result.buffer,
            factor.numel(),
            grad.shape[1],
            factor.stride(0),
            *strides[""][:2],
            *strides["_OUT"][:2],
            columns,
            IN_PLACE=result.buffer is grad,
            **alignment(16 // grad.element_size(), columns, strides),
            **SCALE.tile(grad.element_size()),
            **_options(SCALE),
        )
    result.finish()


def row_weights(given: Weighing) -> Tensor:
    """See ``Backend.row_weights``."""
    weights = torch.empty(given.tokens, dtype=given.dtype, device=given.device)
    if given.tokens == 0:
        return weights
    divisor, token_weights = given.divisor, given.token_weights
    factor, items = 0.0, None
    if isinstance(divisor, Tensor):
        items = divisor
    elif divisor is not None and divisor != 0:
        factor = 1.0 / divisor
    alone = divisor is None
    with _on(given.device):
        row_weights_kernel[(1 if alone else triton.cdiv(given.tokens, WEIGHTS.elements),)](
            given.labels,
            _without_bool(token_weights),
            _without_bool(items),
            weights,
            given.tokens,
            given.ignore_index,
            factor,
            SUM=alone,
            BLOCK=WEIGHTS.elements,
            **_options(WEIGHTS),
        )
    return weights


def _without_bool(x: Tensor | None) -> Tensor | None:
    return x.view(torch.uint8) if x is not None and x.dtype == torch.bool else x


def totals(
    row_loss: Tensor | None, metrics: Tensor | None, loss_scale: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """See ``Backend.totals``."""
    loss = None if row_loss is None else loss_scale.new_empty(())
    means = None if metrics is None else metrics.new_empty(len(METRICS) + 1)
    with _on(loss_scale.device):
        totals_kernel[(1,)](
            row_loss,
            metrics,
            loss_scale,
            loss,
            means,
            loss_scale.numel(),
            BLOCK=TOTALS.elements,
            COLUMNS=METRICS_PLACES,
            **_options(TOTALS),
        )
    return loss, means
