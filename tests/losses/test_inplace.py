"""Test ``inplace=True``: the loss and gradients are the same, and the gradient overwrites the logits."""

from __future__ import annotations

import pytest
import torch
from support.closeness import assert_gradient, assert_value
from support.oracle import reference_gradients
from support.targets import Target

import fastkd
from fastkd.divergences import DIVERGENCES


@pytest.mark.repeats(20, interpreted=6)
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_equals_the_copy(target: Target, divergence: str, dtype: torch.dtype) -> None:
    """inplace=True gives the oracle's loss and gradients, and the logits' memory is reused."""
    x = torch.randn(2, 3, 1500, device=target.device).to(dtype).requires_grad_()
    t = torch.randn(2, 3, 1500, device=target.device).to(dtype).requires_grad_()
    labels = torch.randint(0, 1500, (2, 3), device=target.device)
    labels[0, 1] = -100
    options = {"kd_ratio": 0.5, "temperature": 2.0, "divergence": divergence, "vocab_size": 1500}
    logits = x * 1.0
    memory = logits.untyped_storage()._cdata
    loss = fastkd.kd_loss(logits, t, labels, inplace=True, **options, **target.options)
    # float16 logits are overwritten only in the backward, when the upstream gradient is known.
    overwritten = not torch.equal(logits.detach(), x.detach())
    assert overwritten == (dtype != torch.float16)
    expected, by_s, by_t = reference_gradients(x, t, labels, **options)
    assert_value(loss.detach().cpu(), expected.cpu())
    (3.0 * loss).backward()
    assert logits.untyped_storage()._cdata == memory and not torch.equal(logits.detach(), x.detach())
    factor = 2.0 if dtype == torch.bfloat16 else 1.0  # multiplying by 3 rounds again
    assert_gradient(x.grad, 3.0 * by_s, factor=factor)
    assert_gradient(t.grad, 3.0 * by_t, factor=4 * factor)


def test_columns_past_the_vocabulary_get_zero(target: Target) -> None:
    x = torch.randn(4, 64, device=target.device, requires_grad=True)
    t = torch.randn(4, 60, device=target.device)
    fastkd.kd_loss(x * 1.0, t, vocab_size=50, inplace=True, **target.options).backward()
    _, by_s, _ = reference_gradients(x[:, :50], t[:, :50])
    assert_gradient(x.grad[:, :50], by_s)
    assert (x.grad[:, 50:] == 0).all()


def test_a_second_backward() -> None:
    x, t = torch.randn(4, 60, requires_grad=True), torch.randn(4, 60)
    loss = 3.0 * fastkd.kd_loss(x * 1.0, t, inplace=True)
    (first,) = torch.autograd.grad(loss, x, retain_graph=True)
    kept = first.clone()
    (second,) = torch.autograd.grad(loss, x)
    assert torch.equal(first, kept) and torch.equal(second, kept)


def test_a_later_use_raises() -> None:
    x, t = torch.randn(4, 60, requires_grad=True), torch.randn(4, 60)
    logits = x * 1.0
    loss = fastkd.kd_loss(logits, t, inplace=True)
    with pytest.raises(RuntimeError, match="overwritten"):
        (loss + logits.logsumexp(-1).sum()).backward()


def test_an_earlier_use_that_saved_the_logits_raises() -> None:
    x, t = torch.randn(4, 60, requires_grad=True), torch.randn(4, 60)
    logits = x * 1.0
    other = logits.square().sum()  # saves the logits
    loss = fastkd.kd_loss(logits, t, inplace=True)
    with pytest.raises(RuntimeError, match="inplace operation"):
        (loss + other).backward()


def test_refused_before_anything_is_written() -> None:
    leaf, t = torch.randn(4, 60, requires_grad=True), torch.randn(4, 60)
    before = leaf.detach().clone()
    with pytest.raises(ValueError, match="leaf"):
        fastkd.kd_loss(leaf, t, inplace=True)
    logits = (leaf * 1.0)[:, ::2]
    with pytest.raises(ValueError, match="contiguous"):
        fastkd.kd_loss(logits, t[:, ::2], inplace=True)
    logits = leaf * 1.0
    with pytest.raises(IndexError):
        fastkd.kd_loss(logits, t, torch.tensor([1, 2, 3, 60]), inplace=True)
    assert torch.equal(leaf, before) and torch.equal(logits, before)


def test_nothing_is_written_where_no_gradient_is_wanted() -> None:
    s, t = torch.randn(4, 60), torch.randn(4, 60)
    before = s.clone()
    fastkd.kd_loss(s, t, inplace=True)
    with torch.no_grad():
        fastkd.kd_loss((s.requires_grad_() * 1.0), t, inplace=True)
    assert torch.equal(s.detach(), before)


def test_under_compile() -> None:
    x, t = torch.randn(4, 60, requires_grad=True), torch.randn(4, 60)
    step = torch.compile(
        lambda a: fastkd.kd_loss(a * 2.0, t, inplace=True), fullgraph=True, backend="aot_eager"
    )
    step(x).backward()
    _, by_s, _ = reference_gradients((x * 2.0).detach(), t)
    assert_gradient(x.grad, 2.0 * by_s)
