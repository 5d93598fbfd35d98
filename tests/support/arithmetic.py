"""Detect float64 tensors, which some devices do not support (Apple's GPUs, Intel Arc)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastkd.backends.base import Backend


class _NoFloat64(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            assert not isinstance(x, Tensor) or x.dtype != torch.float64, f"{function} made float64"
        return out


@contextmanager
def without_float64() -> Iterator[None]:
    """Inside the block, a backend that makes a float64 tensor in a float32 call fails an assertion."""
    with pytest.MonkeyPatch.context() as patch:
        rows = Backend.rows

        def watched(self: Backend, call: Any) -> None:
            if call.loss_scale.dtype == torch.float64:
                rows(self, call)
            else:
                with _NoFloat64():
                    rows(self, call)

        patch.setattr(Backend, "rows", watched)
        yield
