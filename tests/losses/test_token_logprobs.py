"""Compare token_logprobs with log_softmax on materialised logits in float64, values and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.closeness import assert_gradient, assert_value
from support.targets import Target
from torch import Tensor

import fastkd


class Head:
    """A random head, its tokens, and their log-probabilities and entropies by the definition in float64."""

    def __init__(self, dtype: torch.dtype, device: str, spread: float = 0.7) -> None:
        torch.manual_seed(3)

        def leaf(*size: int) -> Tensor:
            return (torch.randn(*size) * spread).to(dtype).to(device).requires_grad_()

        self.leaves = leaf(2, 7, 12), leaf(97, 12), leaf(97)
        self.ids = torch.randint(0, 90, (2, 7), device=device)
        self.ids[0, 2] = self.ids[1, 6] = -100
        self.upstream = torch.randn(2, 2, 7, dtype=torch.float64).to(device)

    def fused(self, **options: Any) -> Tensor:
        hidden, weight, bias = self.leaves
        found = fastkd.token_logprobs(hidden, weight, self.ids, bias=bias, return_entropy=True, **options)
        return torch.stack(found)

    def exact(
        self, scale: float = 1.0, cap: float | None = None, width: int = 97
    ) -> tuple[Tensor, list[Tensor]]:
        hidden, weight, bias = doubles = [x.detach().double().requires_grad_() for x in self.leaves]
        logits = (hidden @ weight.t() + bias) * scale
        logits = logits if cap is None else cap * torch.tanh(logits / cap)
        logs = logits[..., :width].log_softmax(-1)
        known = self.ids >= 0
        logprobs = logs.gather(-1, self.ids.clamp(min=0)[..., None])[..., 0] * known
        found = torch.stack([logprobs, -(logs.exp() * logs).sum(-1) * known])
        return found.detach(), list(torch.autograd.grad(found, doubles, self.upstream))


@pytest.mark.repeats(6, interpreted=2)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    ("options", "changes"),
    [
        ({}, {}),
        ({"vocab_size": 90, "chunk_size": 4}, {"width": 90}),
        ({"logit_scale": 0.5, "logit_softcap": 1.5, "chunk_size": 1}, {"scale": 0.5, "cap": 1.5}),
    ],
)
def test_values_and_gradients(
    target: Target, dtype: torch.dtype, options: dict[str, Any], changes: dict[str, Any]
) -> None:
    if not target.runs(dtype):
        pytest.skip(f"{target.backend} has no {dtype}")
    head = Head(dtype, target.device)
    found = head.fused(**options, **target.options)
    expected, gradients = head.exact(**changes)
    # With a 16-bit head the logits themselves are rounded to 16 bits.
    loose = {"rtol": 2e-2, "atol": 2e-2} if dtype == torch.bfloat16 else {"atol": 2e-5}
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_value(found.detach().cpu(), expected.cpu(), **loose)
    assert found[:, 0, 2].tolist() == [0.0, 0.0]
    found.backward(head.upstream.to(found.dtype))
    for leaf, gradient in zip(head.leaves, gradients, strict=True):
        assert leaf.grad is not None
        # The gradients of both results are rounded before they are added up.
        assert_gradient(leaf.grad, gradient, factor=6.0 if dtype == torch.bfloat16 else 1.0)


def test_confident_and_uniform_rows(target: Target) -> None:
    """The entropy reaches from 0 to log V, and the log-probability of a hopeless token is finite."""
    hidden = torch.tensor([[0.0], [1.0]], device=target.device)
    weight = torch.zeros(50, 1, device=target.device)
    weight[3] = 200.0
    ids = torch.tensor([7, 7], device=target.device)
    logprobs, entropies = fastkd.token_logprobs(hidden, weight, ids, return_entropy=True, **target.options)
    log_v = float(torch.tensor(50.0).log())
    assert logprobs.tolist() == pytest.approx([-log_v, -200.0], rel=1e-6)
    assert entropies.tolist() == pytest.approx([log_v, 0.0], abs=1e-5)


def test_without_entropy_there_is_one_result() -> None:
    head = Head(torch.float32, "cpu")
    hidden, weight, bias = head.leaves
    alone = fastkd.token_logprobs(hidden, weight, head.ids, bias=bias)
    assert isinstance(alone, Tensor) and torch.equal(alone, head.fused()[0])
    with pytest.raises(ValueError, match="labels"):
        fastkd.token_logprobs(hidden, weight, head.ids[:, :3])
