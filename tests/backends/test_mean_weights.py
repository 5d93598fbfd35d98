"""Test that the weights of a mean are the same from the compiled function and from torch's operators."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastkd.backends.native import mean_weights
from fastkd.losses.reduction import row_scale

IGNORED = -7


class Watching(TorchDispatchMode):
    """Sees every operator, so that nothing may bypass them."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (7,), (5, 9)])
def test_both_ways(shape: tuple[int, ...], share: float, dtype: torch.dtype) -> None:
    labels = torch.randint(0, 9, shape).where(torch.rand(shape) >= share, IGNORED)
    student = torch.zeros(*shape, 9)
    for given in (labels, labels.t() if labels.dim() == 2 else labels):
        logits = student if given is labels else student.transpose(0, 1)
        arguments = ("mean", given, IGNORED, None, None, logits, dtype)
        found = row_scale(*arguments)
        with Watching():
            assert mean_weights(given, IGNORED, dtype) is None
            expected = row_scale(*arguments)
        assert found.dtype == expected.dtype == dtype and found.shape == expected.shape
        assert torch.equal(found, expected)
        assert float(found.sum()) == pytest.approx(float((given != IGNORED).any()))
