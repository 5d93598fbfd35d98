"""The losses as citizens of autograd, torch.compile and torch.library."""

from __future__ import annotations

from dataclasses import astuple

import pytest
import torch
from closeness import assert_gradient, assert_value
from oracle import reference_gradients

import fastkd
from fastkd.spec import DIVERGENCES, LossSpec


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("backend", ["reference", "native"])
def test_gradcheck(divergence: str, backend: str) -> None:
    s = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    t = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([1, -100, 4])

    def loss(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return fastkd.kd_loss(
            a,
            b,
            labels,
            kd_ratio=0.6,
            temperature=1.7,
            teacher_temperature=0.8,
            divergence=divergence,
            label_smoothing=0.1,
            z_loss=0.01,
            reduction="none",
            backend=backend,
        )

    torch.autograd.gradcheck(loss, (s, t))


def test_second_order_raises() -> None:
    s = torch.randn(3, 7, requires_grad=True)
    (grad,) = torch.autograd.grad(fastkd.kd_loss(s, torch.randn(3, 7)), s, create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable|does not require grad"):
        grad.square().sum().backward()


def test_no_graph_where_none_is_wanted() -> None:
    s = torch.randn(3, 7, requires_grad=True)
    with torch.no_grad():
        assert not fastkd.kd_loss(s, s).requires_grad
    assert not fastkd.kd_loss(s.detach(), s.detach()).requires_grad
    t = torch.randn(3, 7, requires_grad=True)
    fastkd.kd_loss(s.detach(), t).backward()
    assert t.grad is not None


def test_non_leaf_inputs_and_scaled_losses() -> None:
    x = torch.randn(4, 5, requires_grad=True)
    w = torch.randn(5, 30)
    t = torch.randn(4, 30)
    (fastkd.kd_loss(x @ w, t) / 8).backward()
    s = x.detach().double().requires_grad_()
    _, by_s, _ = reference_gradients((s @ w.double()).detach(), t)
    assert_gradient(x.grad, by_s @ w.double().t() / 8)


@pytest.mark.parametrize("keep", [False, True])
def test_upstream_factor_is_applied_once(keep: bool) -> None:
    s = torch.randn(4, 30, requires_grad=True)
    t = torch.randn(4, 30)
    (0.25 * fastkd.kd_loss(s, t)).backward(retain_graph=keep)
    _, by_s, _ = reference_gradients(s, t)
    assert_gradient(s.grad, 0.25 * by_s)


def test_autocast_changes_nothing() -> None:
    s, t = torch.randn(4, 300), torch.randn(4, 300)
    h, w = torch.randn(4, 16), torch.randn(300, 16)
    plain = fastkd.kd_loss(s, t), fastkd.linear_kd_loss(h, w, t), fastkd.kd_loss(s, t, backend="reference")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = fastkd.kd_loss(s, t), fastkd.linear_kd_loss(h, w, t), fastkd.kd_loss(s, t, backend="reference")
    assert all(torch.equal(a, b) for a, b in zip(plain, cast, strict=True))


def test_autocast_does_not_recast_the_heads() -> None:
    t = torch.randn(8, 300)
    grads = []
    for enabled in (False, True):
        torch.manual_seed(1)
        h, w = torch.randn(8, 16).half(), torch.randn(300, 16).half().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            fastkd.linear_kd_loss(h, w, t, chunk_size=3).backward()
        grads.append(w.grad)
    assert torch.equal(*grads)


def test_second_order_raises_in_place_too() -> None:
    x = torch.randn(3, 7, requires_grad=True)
    (grad,) = torch.autograd.grad(
        fastkd.kd_loss(x * 2, torch.randn(3, 7), inplace=True), x, create_graph=True
    )
    with pytest.raises(RuntimeError, match=r"once_differentiable|does not require grad"):
        grad.square().sum().backward()


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compile_without_graph_breaks(reduction: str) -> None:
    t, labels = torch.randn(2, 5, 40), torch.randint(0, 40, (2, 5))
    w = torch.randn(40, 8)

    def step(h: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        dense = fastkd.kd_loss(h @ weight.t(), t, labels, kd_ratio=0.5, temperature=2.0, reduction=reduction)
        linear = fastkd.linear_kd_loss(
            h, weight, t, labels, kd_ratio=0.5, temperature=2.0, reduction=reduction
        )
        return 3.0 * (dense.sum() + linear.sum())

    results = []
    for run in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        h = torch.linspace(-1, 1, 80).view(2, 5, 8).requires_grad_()
        weight = w.clone().requires_grad_()
        loss = run(h, weight)
        loss.backward()
        results.append((loss.detach(), h.grad, weight.grad))
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(eager, compiled)


@pytest.mark.slow
def test_compile_with_inductor() -> None:
    s, t = torch.randn(6, 40, requires_grad=True), torch.randn(6, 40)
    loss = torch.compile(lambda x: fastkd.kd_loss(x * 2.0, t, temperature=2.0), fullgraph=True)(s)
    loss.backward()
    expected, by_s, _ = reference_gradients((s * 2.0).detach(), t, temperature=2.0)
    assert_value(loss.detach(), expected)
    assert_gradient(s.grad, 2.0 * by_s)


def test_compile_does_not_recompile_per_batch_size() -> None:
    import torch._dynamo.testing

    counter = torch._dynamo.testing.CompileCounter()
    step = torch.compile(lambda s, t: fastkd.kd_loss(s, t), fullgraph=True, backend=counter, dynamic=True)
    for rows in (3, 5, 9, 17):
        step(torch.randn(rows, 20), torch.randn(rows, 20))
    assert counter.frame_count == 1


SPEC = LossSpec("forward_kl", 0.5, 2.0, 2.0, 4.0, 0.0, 0.0, 0.0, -100, 12)


def test_opcheck() -> None:
    s, t, scale = torch.randn(2, 3, 12), torch.randn(2, 3, 12), torch.rand(6)
    labels = torch.randint(0, 12, (2, 3))
    torch.library.opcheck(
        torch.ops.fastkd.dense_kd, (s, t, labels, scale, scale, True, True, None, *astuple(SPEC))
    )
    torch.library.opcheck(
        torch.ops.fastkd.dense_kd_, (s.clone(), t, labels, scale, scale, True, None, *astuple(SPEC))
    )
    torch.library.opcheck(torch.ops.fastkd.scale_rows, (s, torch.rand(6), None))
    torch.library.opcheck(torch.ops.fastkd.scale_rows_, (s.clone(), torch.rand(6), None))
    h, w, b = torch.randn(6, 4), torch.randn(12, 4), torch.randn(12)
    teacher = (torch.randn(6, 5), torch.randn(12, 5), torch.randn(12), 1.0, None)
    tail = (labels.view(6), scale, scale, [True] * 6, 4, None, *astuple(SPEC))
    torch.library.opcheck(torch.ops.fastkd.linear_kd, (h, w, b, 1.0, None, *teacher, *tail))
    logits = (torch.randn(6, 12), None, None, 1.0, None)
    tail = (labels.view(6), scale, scale, [True, True, True, True, False, False], 4, None, *astuple(SPEC))
    torch.library.opcheck(torch.ops.fastkd.linear_kd, (h, w, b, 1.0, None, *logits, *tail))
