"""Test losses for draft models: the acceptance rate of speculative decoding, and its hybrid with KL."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from support.closeness import assert_gradient, assert_value, during
from support.oracle import reference_gradients
from support.targets import Target
from torch import Tensor

import fastkd

INF = math.inf


def run(target: Target, s: Tensor, t: Tensor, **options: object) -> tuple[Tensor, Tensor, Tensor]:
    """The losses of the rows, and the student's and the teacher's gradient of their sum."""
    s, t = (x.detach().to(target.device).requires_grad_() for x in (s, t))
    loss = fastkd.kd_loss(s, t, reduction="none", **target.options, **options)  # type: ignore[arg-type]
    by_s, by_t = torch.autograd.grad(loss.sum(), (s, t))
    return loss.detach().cpu(), by_s.cpu(), by_t.cpu()


def apart_by(nats: float, columns: int = 37) -> tuple[Tensor, Tensor]:
    """Two student and teacher rows with sum min(p, q) about ``exp(-nats)``, spread over several columns."""
    random = torch.Generator().manual_seed(3)
    s, t = (torch.randn(2, columns, generator=random) for _ in range(2))
    s[:, : columns // 2] += nats
    t[:, columns // 2 :] += nats
    return s, t


def test_log_acceptance_is_the_logarithm_of_the_shared_probability(target: Target) -> None:
    s, t = torch.randn(6, 500) * 2, torch.randn(6, 500) * 2
    loss, by_s, by_t = run(target, s, t, divergence="log_acceptance")
    p, q = t.double().softmax(-1), s.double().softmax(-1)
    shared = torch.minimum(p, q).sum(-1, keepdim=True)
    assert_value(loss, -shared[:, 0].log())
    # The gradients are TVD's, divided by the acceptance rate.
    _, tvd_s, tvd_t = reference_gradients(s, t, divergence="tvd", reduction="none")
    assert_gradient(by_s, tvd_s / shared)
    assert_gradient(by_t, tvd_t / shared)


# 69 nats are an acceptance rate of 1e-30. From 87 nats on the rate underflows float32, from 708 on float64.
@pytest.mark.parametrize("nats", [0.0, 1.0, 2.0, 3.0, 5.0, 16.0, 40.0, 69.0, 90.0, 300.0, 800.0, 5000.0])
@pytest.mark.repeats(interpreted=6)
def test_tiny_acceptances(target: Target, nats: float) -> None:
    s, t = apart_by(nats)
    for dtype in (torch.float32, torch.float64):
        if target.runs(dtype):
            found = run(target, s.to(dtype), t.to(dtype), divergence="log_acceptance")
            expected = reference_gradients(s, t, divergence="log_acceptance", reduction="none")
            with during(dtype=dtype):
                assert_value(found[0], expected[0])
                # The exponents (of 2) of the entries of min(p, q) are rounded to float32.
                factor = max(4.0, nats / 16 if dtype == torch.float32 else 0.0)
                for ours, exact in zip(found[1:], expected[1:], strict=True):
                    assert_gradient(ours, exact, factor=factor)
                    assert ours.abs().sum() > 0.1, "a gradient that teaches nothing"


def test_no_step_where_rows_become_distant(target: Target) -> None:
    """Both forms of the loss are right around an acceptance rate of 1/8, where the kernels switch forms."""
    gaps = torch.linspace(2.3, 3.1, 9)
    s, t = torch.zeros(9, 40), torch.zeros(9, 40)
    s[:, :20], t[:, 20:] = gaps[:, None], gaps[:, None]
    loss, by_s, by_t = run(target, s, t, divergence="log_acceptance")
    expected = reference_gradients(s, t, divergence="log_acceptance", reduction="none")
    assert ((-expected[0]).exp() < 1 / 8).any() and ((-expected[0]).exp() > 1 / 8).any()
    assert_value(loss, expected[0])
    assert_gradient(by_s, expected[1])
    assert_gradient(by_t, expected[2])


@pytest.mark.parametrize("divergence", ["log_acceptance", "kl_tvd"])
def test_equal_rows(target: Target, divergence: str) -> None:
    for temperature in (1.0, 0.05, 2.3):
        s = torch.randn(3, 700) * 4
        for found in run(target, s, s.clone(), divergence=divergence, temperature=temperature):
            assert not found.any()


def test_ties_count_half(target: Target) -> None:
    """Where p = q, the subgradient is the mean of both one-sided ones, in near rows and in distant ones."""
    for gap in (0.5, 50.0):
        s = torch.tensor([[gap, 0.0, -3.0, -3.0]])
        t = torch.tensor([[0.0, gap, -3.0, -3.0]])
        found = run(target, s, t, divergence="log_acceptance")
        with during(gap=gap):
            for ours, exact in zip(
                found, reference_gradients(s, t, divergence="log_acceptance"), strict=True
            ):
                torch.testing.assert_close(ours.double().sum(0), exact.sum(0), rtol=1e-5, atol=1e-6)


def test_padding_is_minus_infinity(target: Target) -> None:
    for nats in (1.0, 200.0):
        s, t = apart_by(nats)
        wide_s, wide_t = (F.pad(x, (3, 2000), value=-INF) for x in (s, t))
        found = run(target, wide_s, wide_t, divergence="log_acceptance")
        expected = reference_gradients(s, t, divergence="log_acceptance", reduction="none")
        with during(nats=nats):
            assert_value(found[0], expected[0])
            for ours, exact in zip(found[1:], expected[1:], strict=True):
                assert_gradient(ours[:, 3:40], exact, factor=12)
                assert not ours[:, :3].any() and not ours[:, 40:].any()
            # A column that only one side has adds nothing to sum min(p, q).
            s[:, 1], t[:, 30] = -INF, -INF
            found = run(target, s, t, divergence="log_acceptance")
            for ours, exact in zip(
                found, reference_gradients(s, t, divergence="log_acceptance", reduction="none"), strict=True
            ):
                assert_gradient(ours[None], exact[None], factor=12)


def test_rows_that_share_nothing(target: Target) -> None:
    """Rows with disjoint support have an infinite loss and a zero gradient, and do not affect other rows."""
    s, t = torch.randn(3, 60), torch.randn(3, 60)
    s[1, :30], t[1, 30:] = -INF, -INF
    loss, by_s, by_t = run(target, s, t, divergence="log_acceptance")
    assert loss[1] == INF and not by_s[1].any() and not by_t[1].any()
    expected = reference_gradients(s[::2], t[::2], divergence="log_acceptance", reduction="none")
    for ours, exact in zip((loss, by_s, by_t), expected, strict=True):
        assert_gradient(ours[::2].reshape(2, -1), exact.reshape(2, -1))


def test_a_sure_teacher_makes_it_cross_entropy(target: Target) -> None:
    s, labels = torch.randn(5, 90) * 3, torch.tensor([0, 7, 30, 88, 89])
    t = torch.full((5, 90), -INF).scatter(-1, labels[:, None], 1.5)
    loss, by_s, _ = run(target, s, t, divergence="log_acceptance")
    exact = s.double().requires_grad_()
    nll = F.cross_entropy(exact, labels, reduction="none")
    assert_value(loss, nll.detach())
    assert_gradient(by_s, torch.autograd.grad(nll.sum(), exact)[0], factor=4)


def hybrid(s: Tensor, t: Tensor, eta: float) -> Tensor:
    """The hybrid loss by its definition; autograd sees the weight as a constant."""
    log_p, log_q = t.log_softmax(-1), s.log_softmax(-1)
    tvd = 0.5 * (log_p.exp() - log_q.exp()).abs().sum(-1)
    weight = torch.exp(-eta * (1 - tvd.detach()))
    return weight * (log_p.exp() * (log_p - log_q)).sum(-1) + (1 - weight) * tvd


@pytest.mark.parametrize("beta", [None, 0.0, 0.5, 3.0, 10.0, 1e4])
def test_kl_tvd_is_the_hybrid(target: Target, beta: float | None) -> None:
    s, t = torch.randn(6, 300) * 2, torch.randn(6, 300) * 2
    t[:2] = s[:2] + 0.3 * torch.randn(2, 300)
    found = run(target, s, t, divergence="kl_tvd", beta=beta)
    a, b = s.double().requires_grad_(), t.double().requires_grad_()
    loss = hybrid(a, b, 3.0 if beta is None else beta)
    by_s, by_t = torch.autograd.grad(loss.sum(), (a, b))
    assert_value(found[0], loss.detach())
    assert_gradient(found[1], by_s)
    assert_gradient(found[2], by_t, factor=4)


@pytest.mark.parametrize(("beta", "limit"), [(0.0, "forward_kl"), (1e6, "tvd")])
def test_ends_of_the_hybrid(target: Target, beta: float, limit: str) -> None:
    """kl_tvd is the forward KL at beta=0, and TVD for a very large beta."""
    s, t = torch.randn(4, 200), torch.randn(4, 200)
    for ours, end in zip(
        run(target, s, t, divergence="kl_tvd", beta=beta), run(target, s, t, divergence=limit), strict=True
    ):
        torch.testing.assert_close(ours, end, rtol=2e-6, atol=1e-7)


def test_kl_tvd_of_a_token_that_the_student_lacks(target: Target) -> None:
    """If the student rules out a column of the teacher, kl_tvd is infinite and the student's gradient finite,
    as for the forward KL."""
    s, t = torch.randn(2, 50), torch.randn(2, 50)
    s[0, 4] = -INF
    loss, by_s, _ = run(target, s, t, divergence="kl_tvd")
    assert loss[0] == INF and loss[1].isfinite() and by_s.isfinite().all()


def test_the_hybrids_parameter() -> None:
    s = torch.randn(2, 5)
    for beta in (-0.1, INF, math.nan):
        with pytest.raises(ValueError, match="beta must be a finite number"):
            fastkd.kd_loss(s, s, divergence="kl_tvd", beta=beta)
    with pytest.raises(ValueError, match="has no beta.*kl_tvd"):
        fastkd.kd_loss(s, s, divergence="log_acceptance", beta=1.0)


@pytest.mark.parametrize("divergence", ["log_acceptance", "kl_tvd"])
def test_gradients_pass_gradcheck(divergence: str) -> None:
    def loss(s: Tensor, t: Tensor) -> Tensor:
        return fastkd.kd_loss(s, t, divergence=divergence, reduction="none", backend="reference", **fixed)

    # The gradient takes kl_tvd's weight as a constant, but numerical differences see it change. At beta = 0
    # it is constant.
    fixed: dict[str, float] = {"beta": 0.0} if divergence == "kl_tvd" else {}
    check: Callable[..., bool] = torch.autograd.gradcheck
    for nats in (0.5, 6.0):
        s, t = (x.double().requires_grad_() for x in apart_by(nats, 12))
        assert check(loss, (s, t), eps=1e-7, atol=1e-5)
