"""Test ``return_metrics``: the loss is the same, and the means over valid tokens match plain torch."""

from __future__ import annotations

import pytest
import torch
from support.closeness import assert_gradient
from support.oracle import metrics as expected_metrics
from support.targets import Target

import fastkd
from fastkd.divergences import DIVERGENCES


def assert_metrics(found: fastkd.KDMetrics, expected: dict[str, torch.Tensor], rtol: float = 1e-5) -> None:
    for name, value in found._asdict().items():
        assert value.shape == () and not value.requires_grad
        torch.testing.assert_close(
            value.double().cpu(),
            expected[name].double().cpu(),
            rtol=rtol,
            atol=2e-6,
            equal_nan=True,
            msg=name,
        )


@pytest.mark.repeats(20, interpreted=7)
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("temperatures", [(1.0, None), (2.0, None), (0.7, 1.9)])
def test_means(target: Target, divergence: str, temperatures: tuple[float, float | None]) -> None:
    s, t = torch.randn(2, 5, 300, device=target.device) * 2, torch.randn(2, 5, 300, device=target.device) * 2
    t[0, :3] = s[0, :3]  # some agreement
    labels = torch.randint(0, 290, (2, 5), device=target.device)
    labels[0, 1] = labels[1, 4] = -100
    s[..., 290:], t[..., 290:] = float("nan"), float("nan")
    s[0, 1] = float("nan")
    options = {
        "divergence": divergence,
        "temperature": temperatures[0],
        "teacher_temperature": temperatures[1],
        "vocab_size": 290,
        "label_smoothing": 0.1,
    }
    for ratio in (0.5, 1.0):
        x = s.clone().requires_grad_()
        loss, found = fastkd.kd_loss(
            x, t, labels, kd_ratio=ratio, return_metrics=True, **options, **target.options
        )
        plain = fastkd.kd_loss(x, t, labels, kd_ratio=ratio, **options, **target.options)
        assert torch.equal(loss, plain)
        (grad,) = torch.autograd.grad(loss, x)
        assert torch.equal(grad, torch.autograd.grad(plain, x)[0])
        assert_metrics(found, expected_metrics(s, t, labels, kd_ratio=ratio, **options))
        assert found.num_valid.item() == 8


def test_metrics_without_labels_or_teacher_are_nan(target: Target) -> None:
    """Metrics that need labels or a teacher are NaN if the call has none."""
    s, t = torch.randn(4, 50, device=target.device), torch.randn(4, 50, device=target.device)
    labels = torch.randint(0, 50, (4,), device=target.device)
    _, found = fastkd.kd_loss(s, t, return_metrics=True, **target.options)
    assert_metrics(found, expected_metrics(s, t))
    _, found = fastkd.kd_loss(s, None, labels, kd_ratio=0.0, return_metrics=True, **target.options)
    expected = expected_metrics(s, t, labels)
    nothing = dict.fromkeys(("kd", "teacher_entropy", "agreement"), torch.tensor(torch.nan))
    assert_metrics(found, expected | nothing)


@pytest.mark.parametrize("divergence", ["forward_kl", "jsd", "decoupled"])
@pytest.mark.parametrize("inplace", [False, True])
def test_a_divergence_without_a_share_is_measured(target: Target, divergence: str, inplace: bool) -> None:
    """At kd_ratio=0 the divergence is measured, but loss and gradient are the cross-entropy's, even where the
    divergence is infinite."""
    x, t = torch.randn(4, 50, device=target.device).requires_grad_(), torch.randn(4, 50, device=target.device)
    labels = torch.randint(0, 50, (4,), device=target.device)
    options = {"kd_ratio": 0.0, "divergence": divergence, "temperature": 3.0}
    loss, found = fastkd.kd_loss(
        x * 1.0, t, labels, inplace=inplace, return_metrics=True, **options, **target.options
    )
    loss.backward()
    assert_metrics(found, expected_metrics(x.detach(), t, labels, **options))
    exact = x.detach().double().requires_grad_()
    torch.nn.functional.cross_entropy(exact, labels).backward()
    assert_gradient(x.grad, exact.grad)
    x.grad, s = None, x * 1.0
    s = torch.where(torch.arange(50, device=target.device) == labels[:, None] - 1, -torch.inf, s)
    loss, found = fastkd.kd_loss(s, t, labels, kd_ratio=0.0, return_metrics=True, **target.options)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(x.grad).all() and found.kd == torch.inf


def test_nothing_valid_and_no_weight(target: Target) -> None:
    """All metrics are 0 without a valid token, and tokens of weight 0 do not count."""
    s, t = torch.randn(3, 20, device=target.device), torch.randn(3, 20, device=target.device)
    labels = torch.full((3,), -100, device=target.device)
    _, found = fastkd.kd_loss(s, t, labels, return_metrics=True, **target.options)
    assert [x.item() for x in found] == [0.0] * 6
    weights = torch.tensor([1.0, 0.0, 2.0], device=target.device)
    _, found = fastkd.kd_loss(s, t, token_weights=weights, return_metrics=True, **target.options)
    assert_metrics(found, expected_metrics(s[[0, 2]], t[[0, 2]]))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_no_rows(target: Target, reduction: str) -> None:
    """An empty tensor has no address. The means are 0, as they are where no row counts."""
    options = {"kd_ratio": 0.5, "reduction": reduction, "return_metrics": True, **target.options}
    indices = torch.zeros(0, 5, dtype=torch.long, device=target.device)
    sparse = fastkd.SparseTeacher(indices, torch.zeros(0, 5, device=target.device))
    h, w, x, t = (
        torch.zeros(shape, device=target.device, requires_grad=True)
        for shape in ((0, 8), (70, 8), (0, 70), (0, 70))
    )
    labels = indices[:, 0]
    hidden = fastkd.HiddenTeacher(torch.zeros(0, 8, device=target.device), w.detach())
    results = [
        *(fastkd.kd_loss(x, teacher, labels, **options) for teacher in (t, sparse)),
        *(
            fastkd.linear_kd_loss(h, w, teacher, labels, **options)
            for teacher in (t.detach(), sparse, hidden)
        ),
    ]
    for loss, found in results:
        assert loss.shape == ((0,) if reduction == "none" else ()) and loss.sum() == 0
        assert all(value == 0 for value in found), found
        loss.sum().backward()
    assert w.grad is not None and not w.grad.any()


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_every_way_through(target: Target, inplace: bool, reduction: str) -> None:
    """Dense, in-place and linear losses give the same metrics with every reduction."""
    x = torch.randn(4, 70, device=target.device, requires_grad=True)
    t, labels = torch.randn(4, 70, device=target.device), torch.randint(0, 70, (4,), device=target.device)
    options = {"kd_ratio": 0.5, "reduction": reduction, "return_metrics": True}
    loss, found = fastkd.kd_loss(x * 1.0, t, labels, inplace=inplace, **options, **target.options)
    assert_metrics(found, expected_metrics(x.detach(), t, labels, kd_ratio=0.5))
    loss.sum().backward()
    assert torch.isfinite(x.grad).all()
    h, w = (
        torch.randn(4, 8, device=target.device, requires_grad=True),
        torch.randn(70, 8, device=target.device),
    )
    loss, found = fastkd.linear_kd_loss(h, w, t, labels, chunk_size=3, **options, **target.options)
    assert_metrics(found, expected_metrics(h.detach() @ w.t(), t, labels, kd_ratio=0.5))
    loss.sum().backward()
    assert torch.isfinite(h.grad).all()


@pytest.mark.parametrize("tail", ["renormalize", "bucket", "drop"])
def test_sparse_teachers(target: Target, tail: str) -> None:
    s = torch.randn(3, 40, device=target.device)
    indices = torch.stack([torch.randperm(40)[:5] for _ in range(3)]).to(target.device)
    p = torch.softmax(torch.randn(3, 5, device=target.device), -1) * 0.7
    teacher = fastkd.SparseTeacher(indices, p.log(), tail)
    loss, found = fastkd.kd_loss(s, teacher, return_metrics=True, **target.options)
    torch.testing.assert_close(found.kd, loss, rtol=1e-6, atol=1e-6)
    if tail == "bucket":
        held = torch.cat([p, 1 - p.sum(-1, keepdim=True)], -1)
    else:
        held = p / p.sum(-1, keepdim=True)
    entropy = -(held * held.log()).sum(-1).mean()
    torch.testing.assert_close(found.teacher_entropy, entropy, rtol=1e-5, atol=1e-6)
    top = indices.gather(-1, p.argmax(-1, keepdim=True))[:, 0]
    assert found.agreement.item() == pytest.approx((s.argmax(-1) == top).float().mean().item())


def test_the_entropy_of_a_cold_sparse_teacher(target: Target) -> None:
    """At temperature 0.01 each entry's exponential underflows unless the maximum is subtracted first."""
    s = torch.randn(2, 40, device=target.device)
    indices = torch.tensor([[3, 9, 20], [0, 1, 39]], device=target.device)
    logprobs = torch.tensor([[-9.0, -9.01, -11.0], [-8.0, -8.02, -8.03]], device=target.device)
    teacher = fastkd.SparseTeacher(indices, logprobs)
    _, found = fastkd.kd_loss(s, teacher, teacher_temperature=0.01, return_metrics=True, **target.options)
    held = torch.softmax(logprobs.double() / 0.01, -1)
    entropy = -torch.special.xlogy(held, held).sum(-1).mean().float()
    torch.testing.assert_close(found.teacher_entropy, entropy, rtol=1e-4, atol=1e-6)


def test_the_entropy_of_logits_far_from_zero(target: Target) -> None:
    """A sum over the logits themselves would lose the digits that all of them have in common."""
    s, t = (2 * torch.randn(4, 1100, device=target.device) + offset for offset in (1000.0, -3000.0))
    found = fastkd.kd_loss(s, t, return_metrics=True, **target.options)[1]
    for value, logits in ((found.student_entropy, s), (found.teacher_entropy, t)):
        right = torch.distributions.Categorical(logits=logits.double()).entropy().mean()
        torch.testing.assert_close(value.double(), right, rtol=1e-6, atol=0)


def test_under_compile() -> None:
    t, labels = torch.randn(4, 30), torch.randint(0, 30, (4,))

    def step(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        loss, found = fastkd.kd_loss(x * 2.0, t, labels, kd_ratio=0.5, return_metrics=True)
        return loss, found.kd + found.agreement

    x = torch.randn(4, 30, requires_grad=True)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for a, b in zip(step(x), compiled(x), strict=True):
        torch.testing.assert_close(a, b)


def test_the_first_of_equal_logits_leads(target: Target) -> None:
    """The first of equal logits counts as the largest, also if one of them is the label, which the decoupled
    divergence handles separately."""
    s, t = torch.zeros(3, 40, device=target.device), torch.zeros(3, 40, device=target.device)
    s[:, [5, 9]], t[:, 5] = 3.0, 3.0
    labels = torch.tensor([5, 9, 1], device=target.device)
    for divergence in ("forward_kl", "decoupled"):
        options = {"divergence": divergence, "return_metrics": True, **target.options}
        _, found = fastkd.kd_loss(s, t, labels, **options)
        assert found.agreement.item() == 1.0
