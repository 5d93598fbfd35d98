"""The memory that tensors take."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of the tensors' elements; a tensor that occurs twice counts once."""
    return sum(t.numel() * t.element_size() for t in {id(t): t for t in tensors}.values())
