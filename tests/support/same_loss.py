"""Compares two losses on the same inputs: values, and the gradients of every input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from support.closeness import assert_gradient, assert_value
from torch import Tensor


def results(loss: Callable[..., Any], inputs: list[Tensor], upstream: Tensor) -> list[Tensor | None]:
    """The loss and the gradients of ``inputs``, of which those that no gradient reaches are None."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    value = loss(*leaves)
    value.backward(upstream.expand_as(value).to(value.dtype))
    return [value.detach(), *(x.grad for x in leaves)]


def assert_alike(
    ours: Callable[..., Any],
    theirs: Callable[..., Any],
    inputs: list[Tensor],
    *,
    upstream: float | Tensor = 3.0,
    factor: float = 2.0,
) -> None:
    """Assert equal values and gradients for an upstream gradient other than 1."""
    by = torch.as_tensor(upstream)
    (value, *grads), (right, *right_grads) = results(ours, inputs, by), results(theirs, inputs, by)
    assert value is not None and right is not None and value.shape == right.shape
    assert_value(value, right, rtol=1e-5)
    for grad, expected in zip(grads, right_grads, strict=True):
        assert (grad is None) == (expected is None)
        if grad is not None and expected is not None:
            assert_gradient(grad, expected, factor=factor)
