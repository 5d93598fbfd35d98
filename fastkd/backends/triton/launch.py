"""Host side: turns tensors and a LossSpec into kernel launches."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch
import triton
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction

from fastkd.backends.base import Call
from fastkd.backends.kernels import Phase
from fastkd.backends.triton.dense import dense_rows_kernel
from fastkd.backends.triton.divergences import reads_teacher
from fastkd.backends.triton.scale import scale_rows_kernel
from fastkd.spec import LossSpec

INTERPRETED = isinstance(dense_rows_kernel, InterpretedFunction)

LANES = 128
LOG2E = math.log2(math.e)
# What takes few registers per element.
SIMPLE = (None, "off_support", "forward_kl", "reverse_kl", "jeffreys", "tvd")


def tile_shape(itemsize: int, divergence: str | None = None) -> dict[str, int]:
    """Tile for rows whose narrowest element takes ``itemsize`` bytes.

    ``LANES`` is the number of threads, so that each lane is one thread (tiles.py); small programs leave the
    compiler room, and many fit on a multiprocessor to hide memory latency. 16 bytes is the widest access of
    every GPU. 16 elements of each side per thread put 64 to 128 bytes per thread in flight; where logarithms
    or powers of each element take more registers, 8 keep it from spilling.
    """
    width = 16 // itemsize
    per_thread = 16 if divergence in SIMPLE else 8
    return {"REPEAT": per_thread // width, "LANES": LANES, "WIDTH": width}


def _options() -> dict[str, Any]:
    """Compiler options of every launch. Without fusion of multiply and add, equal logits keep equal
    intermediate results; where a fused one is wanted, the kernels say so."""
    if INTERPRETED:
        return {}
    warp_size = triton.runtime.driver.active.get_current_target().warp_size
    return {"num_warps": LANES // warp_size, "enable_fp_fusion": False}


def _on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Make ``device`` current, for the launch goes to the current stream of the current device."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def _strides(x: Tensor | None) -> tuple[int, int, int]:
    """Element strides of a 3-D tensor. A dimension of size 1 gets stride 0: its stride is arbitrary, and an
    odd one would cost the kernel its wide accesses."""
    if x is None:
        return 0, 0, 0
    outer, inner, column = (
        0 if size == 1 else stride for size, stride in zip(x.shape, x.stride(), strict=True)
    )
    return outer, inner, column if x.shape[2] > 1 else 1


class _Rounded:
    """Stands in for a bfloat16 output while interpreted: the interpreter truncates where GPUs round."""

    def __init__(self, out: Tensor | None) -> None:
        self.out = out
        self.buffer = out
        if INTERPRETED and out is not None and out.dtype == torch.bfloat16:
            self.buffer = torch.empty_like(out, dtype=torch.float32)

    def finish(self) -> None:
        if self.out is not None and self.buffer is not None and self.buffer is not self.out:
            self.out.copy_(self.buffer)


def _powers(spec: LossSpec) -> tuple[float, float]:
    """``Scales.a`` and ``Scales.b``."""
    if spec.divergence == "hellinger":
        return 0.5, 0.5
    if spec.divergence in ("alpha", "renyi"):
        return spec.alpha, 1.0 - spec.alpha
    if spec.divergence == "alpha_beta":
        return spec.alpha, spec.beta
    return 1.0 - spec.beta, spec.beta


def dense_rows(call: Call, phase: Phase, record: Tensor | None, coefficient: Tensor | None) -> None:
    """See ``KernelBackend.launch``."""
    spec, student, labels = call.spec, call.student, call.labels
    outer, inner, student_columns = student.shape
    if outer * inner == 0:
        return
    divergence = spec.divergence if spec.kd_weight != 0 else None
    teacher = call.teacher if reads_teacher(divergence) else None
    assert teacher is None or isinstance(teacher, Tensor)
    grad_student, grad_teacher = call.grad_student, call.grad_teacher
    if phase in ("statistics", "sums"):
        grad_student = grad_teacher = None
    elif teacher is None and grad_teacher is not None:
        grad_teacher.zero_()
        grad_teacher = None
    metrics = call.metrics is not None
    cross_entropy = spec.ce_weight != 0 and labels is not None
    # Without a divergence only a metric, the entropy, asks for the student's temperature.
    temperature = spec.temperature if divergence is not None or metrics else 1.0
    a, b = _powers(spec)
    itemsizes = [x.element_size() for x in (student, teacher) if x is not None]
    out_s, out_t = _Rounded(grad_student), _Rounded(grad_teacher)
    with _on(student.device):
        dense_rows_kernel[(outer * inner,)](
            student,
            teacher,
            labels,
            call.loss_scale,
            call.grad_scale,
            call.row_loss,
            out_s.buffer,
            out_t.buffer,
            call.metrics,
            record,
            coefficient,
            *_strides(student),
            *_strides(teacher),
            *_strides(out_s.buffer),
            *_strides(out_t.buffer),
            inner,
            spec.vocab_size,
            student_columns,
            0 if teacher is None else teacher.shape[2],
            spec.ignore_index,
            LOG2E / temperature,
            LOG2E / spec.teacher_temperature,
            1.0 / temperature,
            temperature / spec.teacher_temperature,
            a,
            b,
            spec.kd_weight,
            spec.kd_metric,
            spec.kd_weight / temperature,
            spec.kd_weight / spec.teacher_temperature,
            spec.ce_weight if cross_entropy else 0.0,
            spec.label_smoothing,
            spec.z_loss,
            DIVERGENCE=divergence,
            PHASE=phase,
            SHARDED=call.shards is not None,
            METRICS=metrics,
            CE=cross_entropy,
            SMOOTHING=spec.label_smoothing != 0 and labels is not None and (cross_entropy or metrics),
            Z_LOSS=spec.z_loss != 0,
            POWER={1.0: 1, 2.0: 2}.get(temperature, 0),
            **tile_shape(min(itemsizes), divergence),
            **_options(),
        )
    out_s.finish()
    out_t.finish()


def scale_rows(grad: Tensor, factor: Tensor, out: Tensor) -> None:
    """See ``Backend.scale_rows``."""
    rows, columns = grad.shape
    if rows * columns == 0:
        return
    result = _Rounded(out)
    assert result.buffer is not None
    with _on(grad.device):
        scale_rows_kernel[(rows,)](
            grad,
            factor,
            result.buffer,
            *_strides(grad[None])[1:],
            factor.stride(0),
            *_strides(result.buffer[None])[1:],
            columns,
            IN_PLACE=result.buffer is grad,
            **tile_shape(grad.element_size()),
            **_options(),
        )
    result.finish()
