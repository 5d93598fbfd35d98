"""Test Triton's kernels besides that of the loss: the scaling of gradients."""

from __future__ import annotations

import pytest
import torch
from support.kernel_calls import ULP, call_of, results, spec

from fastkd.backends.registry import REGISTRY

launch_small = pytest.importorskip("fastkd.backends.triton.launch_small", exc_type=ImportError)
pytestmark = pytest.mark.triton_interpret


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("programs", [2, 4096])
def test_scale_rows(dtype: torch.dtype, programs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row is scaled, however few programs there are, into another tensor and in place."""
    monkeypatch.setattr(launch_small, "SCALE_PROGRAMS", programs)
    grad = torch.randn(2, 3, 21).to(dtype)[..., :19]
    each = torch.tensor([1.0, 2.0, 1.0, 0.0, -3.0, 1.0])
    for factor in (each, each[1:2].expand(6), each[:1].expand(6)):
        expected = (grad.double() * factor.double().view(2, 3, 1)).to(dtype)
        out = torch.full_like(grad, 7.0)
        launch_small.scale_rows(grad, factor, out)
        assert torch.equal(out, expected)
        given = grad.clone()
        launch_small.scale_rows(given, factor, given)
        assert torch.equal(given, expected)


@pytest.mark.parametrize("each", [False, True])
def test_upstream(each: bool) -> None:
    """The kernel's gradients are those of a call whose ``grad_scale`` was multiplied before."""
    s, t = torch.randn(1, 4, 40), torch.randn(1, 4, 40)
    labels = torch.tensor([3, -100, 39, 0])
    call, expected = call_of(s, t, labels, spec(40)), call_of(s, t, labels, spec(40))
    call.loss_scale[2] = call.grad_scale[2] = 0.0
    call.upstream = torch.tensor([3.0, 1.0, torch.inf, -2.0]) if each else torch.tensor(3.0).expand(4)
    expected.loss_scale[2] = 0.0
    expected.grad_scale.copy_((call.grad_scale * call.upstream).masked_fill(call.grad_scale == 0, 0.0))
    for one in (call, expected):
        REGISTRY["triton"].rows(one)
    for ours, theirs in zip(results(call), results(expected), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=ULP[ours.dtype], atol=0)
        assert (ours.reshape(4, -1)[1:3] == 0).all()
