"""Test logits that differ by a constant between the sides, and logits near the ends of float32's range."""

from __future__ import annotations

import pytest
import torch
from support.closeness import during
from support.oracle import reference_gradients
from support.targets import TARGETS, Target
from torch import Tensor

import fastkd
from fastkd.divergences import DIVERGENCES

LOWEST = torch.finfo(torch.float32).min
HIGHEST = torch.finfo(torch.float32).max
EVERY_DIVERGENCE = pytest.mark.parametrize("divergence", DIVERGENCES)
# The divergences of powers, with the factor by which each formula multiplies the rounding of its sum, such as
# 1 / |a (1 - a)|.
ENLARGEMENT = {"alpha": 4.0, "alpha_beta": 4.0, "hellinger": 1.0, "renyi": 2.0}
# The CUDA kernels have bounds of their own (docs/losses.md), tested by cases_extremes.py of the emulation.
EXACT = [p for p in TARGETS if p.values[0].device == "cpu" or p.values[0].backend == "triton"]
EVERY_EXACT_TARGET = pytest.mark.parametrize("target", EXACT, indirect=True)
LINEAR = ("forward_kl", "reverse_kl", "jeffreys")


def _rows(target: Target, rows: int) -> int:
    """At most 4 rows where Triton's interpreter runs the kernels, since it runs each row separately."""
    return min(rows, 4) if target.backend == "triton" and target.device == "cpu" else rows


def _run(target: Target, s: Tensor, t: Tensor, **options: object) -> tuple[Tensor, Tensor, Tensor]:
    """The losses, the student's gradient and the teacher's gradient, moved to the CPU."""
    a, b = (x.to(target.device).detach().requires_grad_() for x in (s, t))
    labels = (torch.arange(s.shape[0]) % s.shape[1]).to(target.device)
    loss = fastkd.kd_loss(a, b, labels, reduction="none", **options, **target.options)  # type: ignore[arg-type]
    loss.sum().backward()
    assert a.grad is not None and b.grad is not None
    return loss.detach().cpu(), a.grad.cpu(), b.grad.cpu()


def _exact(s: Tensor, t: Tensor, **options: object) -> tuple[Tensor, Tensor, Tensor]:
    labels = torch.arange(s.shape[0]) % s.shape[1]
    return reference_gradients(s, t, labels, reduction="none", **options)


@pytest.mark.repeats(5, interpreted=2)
@EVERY_EXACT_TARGET
@EVERY_DIVERGENCE
def test_constant_between_the_sides(target: Target, divergence: str) -> None:
    # On a grid the shifted logits are exact in float32, so that both sides are the same distribution.
    t = (torch.randn(_rows(target, 64), 1000) * 512).round() / 512
    # The vector sets' exponentials have a relative error of 1.1e-7 (exp2.h).
    bound = 1.2e-7 * ENLARGEMENT.get(divergence, 1.0)
    if divergence not in ("forward_kl", "reverse_kl", "jeffreys", "decoupled", "hellinger", "alpha", "renyi"):
        bound *= 2  # it sums absolute differences, so roundings do not cancel
    if target.isa == "baseline":
        bound *= 2  # SSE2 has no fused multiply-add, so exponentials are rounded more often
    for shift in (8.0, -8.0, 32.0, 100.0, -100.0, 1000.0):
        assert torch.equal(t + shift - t, torch.full_like(t, shift))
        for temperature in (1.0, 3.0):
            loss, by_s, by_t = _run(
                target, t + shift, t, divergence=divergence, temperature=temperature, t_squared=False
            )
            # The rounding of the constant times 1 / T is the same for all entries, and enters the powers.
            rounded = 2e-9 * abs(shift) / temperature if temperature != 1 and divergence in ENLARGEMENT else 0
            with during(shift=shift, temperature=temperature):
                assert loss.abs().max() <= bound + rounded
                if divergence in LINEAR:
                    assert by_s.abs().sum(-1).max() < 4e-7 and by_t.abs().sum(-1).max() < 4e-7


@EVERY_EXACT_TARGET
@EVERY_DIVERGENCE
@pytest.mark.repeats(interpreted=3)
def test_constant_between_unlike_sides(target: Target, divergence: str) -> None:
    t = (torch.randn(_rows(target, 8), 700) * 512).round() / 512
    s = t + (torch.randn_like(t) * 8).round() / 512
    options = {"divergence": divergence, "temperature": 2.0, "kd_ratio": 0.5}
    expected = _exact(s, t, **options)
    # Triton's exponents of 2 leave room for a maximum that is 24 larger, so they are rounded at that size.
    # The error is 4e-7 of a probability, while log-ratios are 0.008. It is as large without the constant.
    bound = 1e-4 if target.backend == "triton" else 5e-5
    for shift in (64.0, -512.0):
        for found, exact in zip(_run(target, s + shift, t, **options), expected, strict=True):
            with during(shift=shift):
                assert (found - exact).norm() <= bound * exact.norm()


def _pairs(columns: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Rows with numbers near the ends of float32's range; their losses and gradients are exact in float64."""
    s, t = torch.randn(4, columns), torch.randn(4, columns)
    masked = torch.tensor([4, 5])
    large = torch.zeros(4, columns)
    large[:, 1] = 1.0
    return {
        "masked on both sides": (s.index_fill(1, masked, LOWEST), t.index_fill(1, masked, LOWEST)),
        "all masked": (torch.full_like(s, LOWEST), torch.full_like(t, LOWEST)),
        "student all masked": (torch.full_like(s, LOWEST), t),
        "far up": ((s * 8).round() * 128 + 1e9, t),
        "student certain": (s + 3e9 * large, t),
        "teacher certain": (s, t + 3e9 * large),
    }


@pytest.mark.repeats(4, interpreted=2)
@EVERY_EXACT_TARGET
@EVERY_DIVERGENCE
def test_extreme_rows(target: Target, divergence: str) -> None:
    for columns in (7, 1100):
        for name, (s, t) in _pairs(columns).items():
            if divergence == "decoupled" and "certain" in name:
                continue  # next to that logit float64 has no digits left for the other columns
            for temperature in (1.0, 0.05):
                options = {"divergence": divergence, "temperature": temperature, "kd_ratio": 0.5}
                expected = _exact(s, t, **options)
                with during(pair=name, columns=columns, temperature=temperature):
                    results = _run(target, s, t, **options)
                    # Rows in which an unbounded divergence exceeds float32 have no gradients to compare.
                    finite = expected[0] < 1e34
                    assert not results[0].isnan().any() and results[0][finite].isfinite().all()
                    for found, exact in zip(results, expected, strict=True):
                        if not finite.any():
                            break
                        found, exact = found[finite], exact[finite]
                        assert not found.isnan().any()
                        atol = 2e-4 * exact.abs().amax(-1, keepdim=True).clamp(min=1)
                        unbounded = DIVERGENCES[divergence].cross
                        if (target.backend != "native" or unbounded) and found.dim() == 2:
                            # In float32 a teacher's gradient is a difference of two large numbers.
                            atol = atol + 2e-7 * expected[0][finite].abs()[:, None] / temperature
                        assert ((found - exact).abs() <= atol).all()


@EVERY_EXACT_TARGET
@pytest.mark.parametrize("divergence", ["forward_kl", "jsd", "hellinger", "decoupled"])
def test_rows_unlike_their_beginning(target: Target, divergence: str) -> None:
    """A backend's conclusions from a row's first columns must not spoil the columns after them."""
    s, t = torch.randn(6, 3001), torch.randn(6, 3001)
    beginning = slice(0, 2000)
    s[0, beginning] = t[0, beginning] = LOWEST
    s[1, beginning] = t[1, beginning] = -float("inf")
    s[2, beginning] -= 300.0  # both sides begin far below what follows
    t[2, beginning] -= 200.0
    s[3, beginning] += 1000.0  # they begin far apart
    t[3, beginning] -= 1000.0
    s[4, 2500] += 2.0**20  # one late entry is the largest by far, on both sides or on one
    t[4, 2500] += 2.0**20
    s[5, 2500] += 2.0**14
    s[:, :6], t[:, :6] = torch.randn(6, 6), torch.randn(6, 6)  # the labels
    for temperature in (1.0, 0.3):
        options = {"divergence": divergence, "temperature": temperature, "kd_ratio": 0.5}
        expected = _exact(s, t, **options)
        found = _run(target, s, t, **options)
        with during(temperature=temperature):
            torch.testing.assert_close(found[0].double(), expected[0], rtol=1e-6, atol=1e-6)
            for ours, exact in zip(found[1:], expected[1:], strict=True):
                # In float32 a gradient may be the difference of two log-ratios as large as the divergence.
                atol = (
                    1e-5
                    if target.backend == "native"
                    else 1e-5 + 4e-7 * expected[0].abs()[:, None] / temperature
                )
                assert ((ours - exact).abs() <= atol).all()


@EVERY_EXACT_TARGET
@EVERY_DIVERGENCE
@pytest.mark.repeats(interpreted=3)
def test_values_of_the_size_of_float32(target: Target, divergence: str) -> None:
    """Student and teacher are one-hot in different columns, so unbounded divergences reach the logits'
    difference, or exceed float32."""
    s, t = torch.randn(2, 40), torch.randn(2, 40)
    s[:, 5], t[:, 6] = 3e37, 3e37
    for temperature in (1.0, 2.0):
        options = {"divergence": divergence, "temperature": temperature, "t_squared": False}
        loss, by_s, by_t = _run(target, s, t, **options)
        expected, *_ = _exact(s, t, **options)
        with during(temperature=temperature):
            expected = expected.to(loss.dtype)
            torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
            by_s, by_t = by_s[expected.isfinite()], by_t[expected.isfinite()]
            assert by_s.isfinite().all() and by_t.isfinite().all()


@EVERY_EXACT_TARGET
def test_metrics_and_cross_entropy_of_extreme_rows(target: Target) -> None:
    for s, t in ((torch.full((3, 50), LOWEST), torch.full((3, 50), LOWEST)), (torch.randn(3, 50) + 3e9,) * 2):
        s, t = s.to(target.device).requires_grad_(), t.to(target.device)
        labels = torch.tensor([0, 1, 2], device=target.device)
        options = {"label_smoothing": 0.1, "kd_ratio": 0.5, "return_metrics": True, **target.options}
        loss, metrics = fastkd.kd_loss(s, t, labels, **options)  # type: ignore[arg-type]
        loss.backward()
        logs = s.detach().double().log_softmax(-1).cpu()
        entropy = -(logs.exp() * logs).sum(-1).mean()
        assert abs(metrics.student_entropy.item() - entropy.item()) < 1e-5 * max(1, entropy.item())
        assert abs(metrics.teacher_entropy.item() - entropy.item()) < 1e-5 * max(1, entropy.item())
        assert s.grad is not None and s.grad.isfinite().all()
        assert metrics.ce.isfinite() and metrics.agreement == 1


@EVERY_EXACT_TARGET
def test_z_loss_of_extreme_rows(target: Target) -> None:
    s = (torch.randn(3, 50) * 8).round() * 128 + 1e9
    labels = torch.tensor([0, 1, 2])
    loss, by_s, _ = _run(target, s, s, z_loss=1e-20, kd_ratio=0.5)
    exact = torch.logsumexp(s.double(), -1).square() * 1e-20
    nll = torch.nn.functional.cross_entropy(s.double(), labels, reduction="none")
    torch.testing.assert_close(loss.double(), 0.5 * nll + exact, rtol=1e-5, atol=1e-5)
    assert by_s.isfinite().all()


@EVERY_EXACT_TARGET
def test_small_temperature_and_large_logits(target: Target) -> None:
    """Log-ratios of 2e5 must not leave a gradient where it is 0; float32 sums of them once left 6e-5."""
    s, t = torch.zeros(2, 30), torch.zeros(2, 30)
    s[:, 3], t[:, 4] = 1e4, 1e4
    options = {"divergence": "jeffreys", "temperature": 0.05}
    for found, exact in zip(_run(target, s, t, **options), _exact(s, t, **options), strict=True):
        torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=1e-6)


@pytest.mark.repeats(1)
@EVERY_EXACT_TARGET
@EVERY_DIVERGENCE
def test_the_ends_of_the_temperatures(target: Target, divergence: str) -> None:
    masked = torch.tensor([4, 5])
    s, t = (torch.randn(2, 1100).index_fill(1, masked, -torch.inf) for _ in range(2))
    for temperature, teacher_temperature in ((1e15, 1e15), (1e15, 1e-15), (1e-15, 1e15), (1e-15, 1e-15)):
        options = {
            "divergence": divergence,
            "kd_ratio": 0.5,
            "temperature": temperature,
            "teacher_temperature": teacher_temperature,
            "t_squared": False,
        }
        expected, *_ = _exact(s, t, **options)
        with during(temperature=temperature, teacher_temperature=teacher_temperature):
            loss, *gradients = _run(target, s, t, **options)
            if expected.max() < HIGHEST:  # an infinite loss has no gradient
                torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
                assert not any(x.isnan().any() for x in gradients)


def test_infinite_is_no_extreme(target: Target) -> None:
    """Infinite logits are not clamped to finite ones: -inf is a mask, and +inf gives NaN."""
    s, t = torch.randn(2, 60), torch.randn(2, 60)
    s[:, :3] = t[:, :3] = -float("inf")
    loss, by_s, by_t = _run(target, s, t)
    assert loss.isfinite().all() and (by_s[:, :3] == 0).all() and (by_t[:, :3] == 0).all()
    s[0, 7] = float("inf")
    loss, by_s, _ = _run(target, s, t)
    assert loss[0].isnan() and loss[1].isfinite() and by_s[1].isfinite().all()


@EVERY_EXACT_TARGET
def test_the_ends_of_float32(target: Target) -> None:
    """Losses beyond float32's range may be infinite, but none is NaN."""
    high = torch.rand(4, 90) < 0.5
    s, t = torch.where(high, HIGHEST, LOWEST), torch.where(torch.rand(4, 90) < 0.5, HIGHEST, LOWEST)
    for divergence in DIVERGENCES:
        loss, *_ = _run(target, s, t, divergence=divergence, kd_ratio=0.5)
        with during(divergence=divergence):
            assert not loss.isnan().any()


@EVERY_EXACT_TARGET
@pytest.mark.parametrize("tail", ["renormalize", "bucket", "drop"])
def test_extreme_rows_of_sparse_teachers(target: Target, tail: str) -> None:
    s, t = torch.randn(3, 60), torch.randn(3, 60)
    s[0] += 2.0**20
    if target.backend == "native":  # others, in float32, keep no digits for the other columns
        s[1, 7] = 2.0**32
    s[2, 30:] = LOWEST
    logprobs, indices = torch.log_softmax(t, -1)[:, :30].topk(5)
    labels = torch.tensor([1, 2, 3])
    found = []
    # Triton's kernels do not accept float64.
    oracle = {"backend": "reference"} if target.backend == "triton" else target.options
    for dtype, options in ((torch.float32, target.options), (torch.float64, oracle)):
        a, b = (x.to(target.device, dtype).detach().requires_grad_() for x in (s, logprobs))
        loss, metrics = fastkd.kd_loss(
            a,
            fastkd.SparseTeacher(indices.to(target.device), b, tail),
            labels.to(target.device),
            kd_ratio=0.5,
            return_metrics=True,
            **options,
        )
        loss.backward()
        found.append((loss.detach(), a.grad, b.grad, metrics.kd, metrics.agreement, metrics.student_entropy))
    for ours, exact in zip(*found, strict=True):
        torch.testing.assert_close(ours.double(), exact.double(), rtol=1e-5, atol=1e-6)
