"""Test which operations the watch of device_watch.py refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.device_watch import Refused, watched
from torch import Tensor

DEVICE = "cuda:1"

MASK: Callable[[Tensor], Any] = lambda x: x[x > 0]  # noqa: E731


@pytest.mark.parametrize(
    "call",
    [
        MASK,
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: x.tolist(),
        lambda x: x.nonzero(),
        lambda x: x.unique(),
        lambda x: torch.equal(x, x),
        lambda x: x[[0, 1]],
        lambda x: x.cpu(),
        lambda x: x.new_tensor([1.0, 2.0]),
        lambda x: torch.tensor([1.0, 2.0], device=x.device),
        lambda x: torch.where(x > 0, torch.tensor(1.0), x),
        lambda x: x + torch.ones(4),
        lambda x: torch.zeros(4, device="cuda:0"),
        lambda x: torch.zeros(4),
    ],
)
def test_refused_operations(call: Callable[[Tensor], Any]) -> None:
    """The watch refuses operations that wait for the device, copy from the host or use another device."""
    with watched(DEVICE), pytest.raises(Refused):
        call(torch.empty(4, device=DEVICE))


def test_allowed_operations() -> None:
    """The watch allows operations that need neither a wait nor a copy."""
    with watched(DEVICE):
        x = torch.empty(4, device=DEVICE)
        x[:2] = 1.5
        y = torch.where(x > 0, x, 0.0) * torch.tensor(3.0)
        assert y[torch.arange(2, device=DEVICE)].shape == (2,)
