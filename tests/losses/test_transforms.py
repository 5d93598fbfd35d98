"""Test torch.func's transforms, forward mode and batched gradients: right or refused, never 0 or None."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from support.targets import Target
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap

import fastkd

LABELS = torch.tensor([3, -100, 0, 39])


def make() -> tuple[Tensor, Tensor]:
    return torch.randn(4, 40), torch.randn(4, 40)


def plain(s: Tensor, t: Tensor, labels: Tensor | None = None, reduction: str = "mean") -> Tensor:
    rows = F.kl_div(s.log_softmax(-1), t.softmax(-1), reduction="none").sum(-1)
    if labels is not None:
        rows = 0.5 * rows + 0.5 * F.cross_entropy(s, labels, reduction="none")
        rows = torch.where(labels != -100, rows, 0.0)
        return rows.sum() / (labels != -100).sum()
    return rows if reduction == "none" else rows.mean()


def assert_same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6, check_dtype=False)


def test_grad_and_jacobians(target: Target) -> None:
    s, t = (x.to(target.device) for x in make())
    labels = LABELS.to(target.device)

    def ours(x: Tensor) -> Tensor:
        return fastkd.kd_loss(x, t, labels, kd_ratio=0.5, **target.options)

    def rows(x: Tensor) -> Tensor:
        return fastkd.kd_loss(x, t, reduction="none", **target.options)

    assert_same(grad(ours)(s), grad(lambda x: plain(x, t, labels))(s))
    expected = jacrev(lambda x: plain(x, t, reduction="none"))(s)
    assert_same(jacrev(rows)(s), expected)
    assert_same(jacfwd(rows)(s), expected)
    x = s.clone().requires_grad_()
    assert_same(torch.autograd.functional.jacobian(rows, x, vectorize=True), expected)
    half = torch.autograd.functional.jacobian(rows, x.half(), vectorize=True)
    torch.testing.assert_close(half.float(), expected, rtol=5e-3, atol=1e-4)


@pytest.mark.parametrize("divergence", ["forward_kl", "jsd", "tvd"])
def test_forward_mode(target: Target, divergence: str) -> None:
    s, t = (x.to(target.device) for x in make())
    by_s, by_t = torch.randn_like(s), torch.randn_like(t)

    def ours(a: Tensor, b: Tensor) -> Tensor:
        return fastkd.kd_loss(a, b, divergence=divergence, temperature=2.0, **target.options)

    leaves = [x.clone().requires_grad_() for x in (s, t)]
    g_s, g_t = torch.autograd.grad(ours(*leaves), leaves)
    expected = (g_s * by_s).sum() + (g_t * by_t).sum()
    assert_same(jvp(ours, (s, t), (by_s, by_t))[1], expected)
    with forward_ad.dual_level():
        loss = ours(forward_ad.make_dual(s, by_s), forward_ad.make_dual(t, by_t))
        assert_same(forward_ad.unpack_dual(loss).tangent, expected)


def test_float16_in_forward_mode_and_in_vmap() -> None:
    s, t = make()
    v = torch.randn_like(s)
    expected = jvp(lambda x: plain(x, t), (s.half().float(),), (v.half().float(),))[1]
    assert_same(jvp(lambda x: fastkd.kd_loss(x, t), (s.half(),), (v.half(),))[1], expected)


def test_vmap_and_its_gradients() -> None:
    s, t = torch.randn(3, 4, 40, requires_grad=True), torch.randn(3, 4, 40)
    labels = torch.randint(0, 40, (3, 4))
    found = vmap(lambda a, b, y: fastkd.kd_loss(a, b, y, kd_ratio=0.5))(s, t, labels)
    expected = torch.stack([fastkd.kd_loss(*x, kd_ratio=0.5) for x in zip(s, t, labels, strict=True)])
    assert_same(found, expected)
    (of_vmap,) = torch.autograd.grad(found.square().sum(), s)
    (of_stack,) = torch.autograd.grad(expected.square().sum(), s)
    assert_same(of_vmap, of_stack)
    per_sample = vmap(grad(lambda a, b: fastkd.kd_loss(a, b)))(s.detach(), t)
    assert_same(per_sample, vmap(grad(plain))(s.detach(), t))
    with pytest.raises(IndexError, match="label [0-9]+ at token"):
        vmap(lambda a, b, y: fastkd.kd_loss(a, b, y))(s, t, labels + 40)


def test_vmap_of_sparse_teachers_and_metrics() -> None:
    s, t = torch.randn(3, 4, 40), torch.randn(3, 4, 40)
    logprobs, indices = t.log_softmax(-1).topk(5)

    def both(a: Tensor, i: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        loss, metrics = fastkd.kd_loss(a, fastkd.SparseTeacher(i, p), return_metrics=True)
        return loss, metrics.kd

    loss, kd = vmap(both)(s, indices, logprobs)
    expected = [fastkd.kd_loss(*x) for x in zip(s, map(fastkd.SparseTeacher, indices, logprobs), strict=True)]
    assert_same(loss, torch.stack(expected))
    assert_same(kd, torch.stack(expected))


@pytest.mark.parametrize("fused", [False, True])
def test_functional_call(fused: bool) -> None:
    model, x, t = torch.nn.Linear(8, 40), torch.randn(4, 8), torch.randn(4, 40)
    parameters = {k: v.detach() for k, v in model.named_parameters()}

    def ours(p: dict[str, Tensor]) -> Tensor:
        if fused:
            return fastkd.linear_kd_loss(x, p["weight"], t, LABELS, student_bias=p["bias"], kd_ratio=0.5)
        return fastkd.kd_loss(functional_call(model, p, (x,)), t, LABELS, kd_ratio=0.5)

    found = grad(ours)(parameters)
    expected = grad(lambda p: plain(functional_call(model, p, (x,)), t, LABELS))(parameters)
    for name in parameters:
        assert_same(found[name], expected[name])


def second_derivatives() -> dict[str, Callable[[Callable[[Tensor], Tensor], Tensor], object]]:
    return {
        "hessian": lambda f, s: hessian(f)(s),
        "reverse over reverse": lambda f, s: jacrev(jacrev(f))(s),
        "forward over forward": lambda f, s: jacfwd(jacfwd(f))(s),
        "reverse over forward": lambda f, s: jacrev(jacfwd(f))(s),
        "grad of grad": lambda f, s: grad(lambda x: grad(f)(x).square().sum())(s),
        "autograd's hessian": torch.autograd.functional.hessian,
        "autograd's hvp": lambda f, s: torch.autograd.functional.hvp(f, s, torch.ones_like(s)),
    }


@pytest.mark.parametrize("name", second_derivatives())
def test_second_derivatives_are_refused(name: str) -> None:
    s, t = make()
    with pytest.raises(RuntimeError, match="second derivative of a fastkd loss.*plain torch"):
        second_derivatives()[name](lambda x: fastkd.kd_loss(x, t), s)


@pytest.mark.parametrize("options", [{}, {"inplace": True}, {"reduction": "none"}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("upstream", [False, True])
def test_gradient_penalty_is_refused(options: dict[str, object], dtype: torch.dtype, upstream: bool) -> None:
    """A gradient penalty is refused whether the upstream gradient needs a gradient or not."""
    net, x, t = torch.nn.Linear(8, 40), torch.randn(4, 8), torch.randn(4, 40)
    weight = torch.tensor(2.0, requires_grad=upstream)
    loss = weight * fastkd.kd_loss(net(x).to(dtype), t, **options).sum()
    slopes = torch.autograd.grad(loss, list(net.parameters()), create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative"):
        (loss + sum(g.float().square().sum() for g in slopes)).backward()


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradient_penalty_through_a_head_is_refused(reduction: str) -> None:
    h, w, t = (
        torch.randn(4, 8, requires_grad=True),
        torch.randn(40, 8, requires_grad=True),
        torch.randn(4, 40),
    )
    loss = fastkd.linear_kd_loss(h, w, t, reduction=reduction).sum()
    by_h, by_w = torch.autograd.grad(loss, (h, w), create_graph=True)
    for g in (by_h, by_w):
        with pytest.raises(RuntimeError, match="second derivative"):
            g.square().sum().backward(retain_graph=True)


def test_a_graph_of_the_gradient_does_no_harm() -> None:
    """create_graph=True alone needs no second derivative, nor does a derivative by the upstream gradient."""
    s, t = make()
    x, weight = s.clone().requires_grad_(), torch.tensor(2.0, requires_grad=True)
    (g,) = torch.autograd.grad(weight * fastkd.kd_loss(x, t), x, create_graph=True)
    (expected,) = torch.autograd.grad(plain(x, t), x)
    assert_same(g, 2 * expected)
    (by_weight,) = torch.autograd.grad(g.square().sum(), weight)
    assert_same(by_weight, 4 * expected.square().sum())


def test_compiled_transforms_are_right_or_refused() -> None:
    """torch.compile would treat an op's gradient inside torch.func.grad as 0; fastkd must prevent that."""
    s, t = make()
    compiled = torch.compile(grad(lambda x: fastkd.kd_loss(x, t)), backend="aot_eager")
    try:
        found = compiled(s)
    except RuntimeError:
        return
    assert_same(found, grad(lambda x: plain(x, t))(s))
