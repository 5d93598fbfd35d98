"""Memory for large gradients on a CPU, which is kept when a tensor is freed and given to the next one.

Pages that the system has just mapped cost as much as a kernel when they are first written: with the default
allocator every large tensor has them in every step. A block goes back only when nothing refers to its tensor
any more, so that hooks, views and retained graphs keep theirs. While it waits, the system may take its pages
where memory is short.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils import deterministic

from fastkd.backends.native import block, keep_at_most, nothing_traces

# Smaller tensors come from torch's allocator, which has memory of their size at hand.
KEPT_FROM = 2**22
NO_LIMIT = 2**63 - 1


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """:func:`torch.empty` for memory that one call needs: a gradient, or a chunk of logits."""
    count = math.prod(shape)
    if device.type != "cpu" or count * dtype.itemsize < KEPT_FROM or not nothing_traces():
        return torch.empty(shape, dtype=dtype, device=device)
    try:
        buffer = block(count * dtype.itemsize)
    except MemoryError:
        release_memory()
        buffer = None
    if buffer is None:
        return torch.empty(shape, dtype=dtype, device=device)  # has torch's own message, if it fails
    flat = torch.frombuffer(buffer, dtype=dtype)
    strides = [math.prod(shape[place + 1 :]) for place in range(len(shape))]
    found = torch.empty(0, dtype=dtype).set_(flat.untyped_storage(), 0, tuple(shape), strides)
    if torch.are_deterministic_algorithms_enabled() and deterministic.fill_uninitialized_memory:  # type: ignore[attr-defined]
        found.fill_(float("nan"))
    return found


def empty_like(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """:func:`empty` of the shape, dtype (unless given) and device of ``x``, contiguous."""
    return empty(x.shape, x.dtype if dtype is None else dtype, x.device)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def device_bytes(device: torch.device) -> int:
    """The memory of this CUDA device; 0 for others, and where there is none."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return 0
    return torch.cuda.get_device_properties(device).total_memory


def keeps_gaps(x: Tensor) -> bool:
    """Whether the gradient of ``x`` should have its strides: for views such as ``logits[:, :-1]`` on a GPU.

    Its rows then begin as far from a boundary of 16 bytes as the logits' do, whatever the vocabulary's size,
    and the kernels read and write vectors. The gaps may take as much memory as the gradient at most.
    """
    if x.device.type != "cuda" or x.dim() > 3 or x.is_contiguous() or not nothing_traces():
        return False
    extent = 1
    for size, stride in reversed([*zip(x.shape, x.stride(), strict=True)]):
        if size > 1 and stride < extent:
            return False  # elements that share memory, or dimensions in another order
        extent += (size - 1) * stride
    return x.stride(-1) == 1 and extent <= 2 * x.numel()


def release_memory() -> None:
    """Give the memory that fastkd keeps for the next gradients on a CPU back to the system.

    It is never more than the gradients of one step needed, and the system takes it by itself where memory
    is short. Gradients that are in use are not touched. Nothing is kept on a GPU, whose memory torch manages.
    """
    keep_at_most(keep_at_most(0))


def trim() -> None:
    """Return the memory that has been freed, and that the C library keeps, to the system."""
    with contextlib.suppress(OSError, AttributeError):  # only the C library of most Linux systems has it
        ctypes.CDLL(None).malloc_trim(0)


def keep_memory(limit: int | None) -> None:
    """Set how many bytes of freed gradients on a CPU are kept for the next ones.

    Args:
        limit: bytes; 0 keeps none, as torch's allocator does; None, the default, as many as the gradients in
            use at one time have needed.

    Raises:
        ValueError: the limit is negative.
    """
    if limit is not None and limit < 0:
        raise ValueError(f"limit must be a number of bytes, or None, not {limit}")
    keep_at_most(NO_LIMIT if limit is None else min(limit, NO_LIMIT))
