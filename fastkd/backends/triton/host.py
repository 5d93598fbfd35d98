"""A launch's options, its device, and the layout of its tensors."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import triton
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction

from fastkd.backends.triton.scale import scale_rows_kernel
from fastkd.backends.triton.shapes import Shape

INTERPRETED = isinstance(scale_rows_kernel, InterpretedFunction)


def options(shape: Shape, backend: str, warp_size: int) -> dict[str, Any]:
    """Compiler options of every launch. Automatic fusion of multiply and add is off, so that equal logits
    give equal intermediate results; the kernels call ``fma`` where they need it."""
    found: dict[str, Any] = {"num_warps": shape.threads // warp_size, "enable_fp_fusion": False}
    if backend == "cuda":
        # By default the compiler aims at fewer registers and spills values that live across the sweeps.
        found["maxnreg"] = shape.registers
    return found


def options_here(shape: Shape) -> dict[str, Any]:
    if INTERPRETED:
        return {}
    target = triton.runtime.driver.active.get_current_target()
    return options(shape, target.backend, target.warp_size)


def on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Make ``device`` current, because a launch uses the current stream of the current device."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def strides_of(x: Tensor | None) -> tuple[int, int, int]:
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


class Rounded:
    """A float32 stand-in for a bfloat16 output, since Triton's interpreter truncates where GPUs round."""

    def __init__(self, out: Tensor | None) -> None:
        self.out = out
        self.buffer = out
        if INTERPRETED and out is not None and out.dtype == torch.bfloat16:
            self.buffer = torch.empty_like(out, dtype=torch.float32)

    def finish(self) -> None:
        if self.out is not None and self.buffer is not None and self.buffer is not self.out:
            self.out.copy_(self.buffer)
