"""Host side: turns tensors and a LossSpec into kernel launches."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch
import triton
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction

from fastkd.backends.triton.dense import dense_rows_kernel
from fastkd.backends.triton.scale import scale_rows_kernel
from fastkd.spec import LossSpec

INTERPRETED = isinstance(dense_rows_kernel, InterpretedFunction)

LANES = 128


def tile_shape(itemsize: int, divergence: str | None = None) -> dict[str, int]:
    """Tile for rows whose narrowest element takes ``itemsize`` bytes.

    ``LANES`` is the number of threads, so that each lane is one thread (tiles.py); small programs leave the
    compiler room, and many fit on a multiprocessor to hide memory latency. 16 bytes is the widest access of
    every GPU. 16 elements of each side per thread put 64 to 128 bytes per thread in flight; the logarithms of
    ``jsd`` take more registers, and 8 elements keep it from spilling.
    """
    width = 16 // itemsize
    per_thread = 8 if divergence == "jsd" else 16
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


def dense_rows(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor | None,
    loss_scale: Tensor,
    grad_scale: Tensor,
    spec: LossSpec,
    row_loss: Tensor,
    grad_student: Tensor | None,
    grad_teacher: Tensor | None,
) -> None:
    """See ``Backend.dense_rows``."""
    outer, inner, student_columns = student.shape
    if outer * inner == 0:
        return
    distilled = spec.kd_weight != 0
    if not distilled and grad_teacher is not None:
        grad_teacher.zero_()
        grad_teacher = None
    cross_entropy = spec.ce_weight != 0 and labels is not None
    temperature = spec.temperature if distilled else 1.0
    divergence = spec.divergence if distilled else None
    itemsizes = [student.element_size()] + ([teacher.element_size()] if distilled else [])
    out_s, out_t = _Rounded(grad_student), _Rounded(grad_teacher)
    with _on(student.device):
        dense_rows_kernel[(outer * inner,)](
            student,
            teacher if distilled else None,
            labels,
            loss_scale,
            grad_scale,
            row_loss,
            out_s.buffer,
            out_t.buffer,
            *_strides(student),
            *_strides(teacher if distilled else None),
            *_strides(out_s.buffer),
            *_strides(out_t.buffer),
            inner,
            spec.vocab_size,
            student_columns,
            teacher.shape[2] if distilled else 0,
            spec.ignore_index,
            math.log2(math.e) / temperature,
            math.log2(math.e) / spec.teacher_temperature,
            spec.kd_weight,
            spec.kd_weight / temperature,
            spec.kd_weight / spec.teacher_temperature,
            spec.beta,
            spec.ce_weight if cross_entropy else 0.0,
            spec.label_smoothing,
            spec.z_loss,
            DIVERGENCE=divergence,
            CE=cross_entropy,
            SMOOTHING=cross_entropy and spec.label_smoothing != 0,
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
