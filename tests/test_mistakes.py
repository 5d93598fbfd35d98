"""Defects seen in public distillation losses, one named case each."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from closeness import assert_gradient, assert_value
from oracle import reference_gradients
from targets import Target

import fastkd
from fastkd.spec import DIVERGENCES

INF = float("inf")


def _leaf(x: torch.Tensor, target: Target) -> torch.Tensor:
    return x.to(target.device).detach().requires_grad_()


def test_01_mixture_of_underflowed_probabilities(target: Target) -> None:
    # Most of both distributions underflows float32; the mixture's logarithm must not.
    s = torch.full((1, 400), -300.0)
    t = torch.full((1, 400), -300.0)
    s[0, 0], t[0, 1] = 200.0, 200.0
    s, t = _leaf(s, target), _leaf(t, target)
    loss = fastkd.kd_loss(s, t, divergence="jsd", beta=0.5, **target.options)
    assert_value(loss.detach().cpu(), torch.tensor(math.log(2.0)))
    loss.backward()
    assert torch.isfinite(s.grad).all() and torch.isfinite(t.grad).all()


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("count", [1, 30, 70])
def test_02_padding_of_minus_infinity(target: Target, divergence: str, count: int) -> None:
    s, t = torch.randn(3, 100), torch.randn(3, 100)
    s[:, 100 - count :] = t[:, 100 - count :] = -INF
    labels = torch.randint(0, 20, (3,), device=target.device)
    s, t = _leaf(s, target), _leaf(t, target)
    loss = fastkd.kd_loss(
        s, t, labels, kd_ratio=0.5, temperature=2.0, divergence=divergence, **target.options
    )
    loss.backward()
    kept = slice(0, 100 - count)
    expected, by_s, by_t = reference_gradients(
        s[:, kept], t[:, kept], labels, kd_ratio=0.5, temperature=2.0, divergence=divergence
    )
    assert_value(loss.detach().cpu(), expected.cpu())
    assert_gradient(s.grad[:, kept], by_s)
    assert_gradient(t.grad[:, kept], by_t, factor=4)
    assert (s.grad[:, 100 - count :] == 0).all() and (t.grad[:, 100 - count :] == 0).all()


def test_02_whole_blocks_of_minus_infinity(target: Target) -> None:
    s, t = torch.randn(2, 5000), torch.randn(2, 5000)
    s[:, :4200] = t[:, :4200] = -INF
    s, t = _leaf(s, target), _leaf(t, target)
    loss = fastkd.kd_loss(s, t, **target.options)
    loss.backward()
    expected, by_s, _ = reference_gradients(s[:, 4200:], t[:, 4200:])
    assert_value(loss.detach().cpu(), expected.cpu())
    assert_gradient(s.grad[:, 4200:], by_s)


def test_02_one_sided_minus_infinity(target: Target) -> None:
    s, t = torch.randn(1, 50), torch.randn(1, 50)
    s[0, 3] = -INF
    a, b = s.to(target.device), t.to(target.device)
    # The student rules out what the teacher allows: infinitely far, and not NaN.
    assert fastkd.kd_loss(a, b, **target.options).item() == INF
    # What the student rules out costs it nothing in the reverse direction.
    reverse = fastkd.kd_loss(a, b, divergence="reverse_kl", **target.options)
    expected, _, _ = reference_gradients(s, t, divergence="reverse_kl")
    assert_value(reverse.cpu(), expected)
    jsd = fastkd.kd_loss(a, b, divergence="jsd", **target.options)
    expected, _, _ = reference_gradients(s, t, divergence="jsd")
    assert_value(jsd.cpu(), expected)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_03_small_temperature(target: Target, divergence: str) -> None:
    s, t = _leaf(torch.randn(4, 200) * 5, target), _leaf(torch.randn(4, 200) * 5, target)
    loss = fastkd.kd_loss(s, t, temperature=0.05, divergence=divergence, **target.options)
    loss.backward()
    expected, by_s, by_t = reference_gradients(s, t, temperature=0.05, divergence=divergence)
    assert_value(loss.detach().cpu(), expected.cpu(), rtol=1e-5)
    assert_gradient(s.grad, by_s, factor=40)
    assert_gradient(t.grad, by_t, factor=40)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_04_near_identical_models(target: Target, divergence: str, dtype: torch.dtype) -> None:
    s = (torch.randn(4, 2000) * 3).to(dtype)
    t = s.clone()
    # A rounding step here and there: everything else differs by the partition alone.
    t[:, ::50] += 2 * torch.finfo(dtype).eps * t[:, ::50].abs()
    s = _leaf(s, target)
    fastkd.kd_loss(
        s, t.to(target.device), divergence=divergence, reduction="sum", **target.options
    ).backward()
    _, by_s, _ = reference_gradients(s, t.to(target.device), divergence=divergence, reduction="sum")
    error = (s.grad.double() - by_s).norm() / by_s.norm()
    rounding = (by_s.to(dtype).double() - by_s).norm() / by_s.norm()
    if dtype == torch.float16:  # held scaled and rounded again by its factor
        rounding = rounding + torch.finfo(dtype).eps / 2
    assert error <= 2 * rounding, f"{error:.2e} against a rounding of {rounding:.2e}"


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_04_identical_models(target: Target, divergence: str, dtype: torch.dtype) -> None:
    columns = 3000 if target.backend == "triton" and target.device == "cpu" else 248_000
    s = _leaf((torch.randn(2, columns) * 4).to(dtype), target)
    loss = fastkd.kd_loss(s, s.detach().clone(), divergence=divergence, **target.options)
    loss.backward()
    assert abs(loss.item()) < 1e-6
    assert s.grad.abs().max().item() < 1e-9


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_05_label_gradient_is_rounded_once(target: Target, dtype: torch.dtype) -> None:
    # softmax(s)[label] close to 1: subtracting 1 after rounding to 16 bits would leave nothing.
    s = torch.zeros(1, 10)
    s[0, 4] = 12.0
    s = _leaf(s.to(dtype), target)
    labels = torch.tensor([4], device=target.device)
    fastkd.kd_loss(s, torch.zeros_like(s), labels, kd_ratio=0.0, **target.options).backward()
    _, by_s, _ = reference_gradients(s, torch.zeros_like(s), labels, kd_ratio=0.0)
    assert by_s[0, 4] != 0
    relative = (s.grad.double() - by_s).abs() / by_s.abs()
    assert relative.max() <= torch.finfo(dtype).eps * (1 if dtype == torch.bfloat16 else 2)


def test_06_t_squared_reaches_the_gradient(target: Target) -> None:
    s, t = torch.randn(3, 50), torch.randn(3, 50).to(target.device)
    grads = []
    for t_squared in (True, False):
        x = _leaf(s, target)
        fastkd.kd_loss(x, t, temperature=3.0, t_squared=t_squared, **target.options).backward()
        grads.append(x.grad)
    torch.testing.assert_close(grads[0], 9 * grads[1])


def test_07_ignore_index_in_the_soft_term(target: Target) -> None:
    s, t = torch.randn(4, 50), torch.randn(4, 50)
    labels = torch.tensor([1, -100, 2, -100], device=target.device)
    a = _leaf(s, target)
    loss = fastkd.kd_loss(a, t.to(target.device), labels, kd_ratio=1.0, **target.options)
    loss.backward()
    kept = fastkd.kd_loss(s[[0, 2]].to(target.device), t[[0, 2]].to(target.device), **target.options)
    assert_value(loss.detach(), kept)
    assert (a.grad[[1, 3]] == 0).all() and (a.grad[[0, 2]] != 0).any()


def test_07_ignored_rows_are_not_read(target: Target) -> None:
    s, t = torch.randn(4, 50), torch.randn(4, 50)
    s[1], t[3] = float("nan"), INF
    labels = torch.tensor([1, -100, 2, -100], device=target.device)
    a, b = _leaf(s, target), _leaf(t, target)
    loss = fastkd.kd_loss(a, b, labels, kd_ratio=0.5, label_smoothing=0.1, z_loss=1e-3, **target.options)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(a.grad).all() and torch.isfinite(b.grad).all()
    assert (a.grad[[1, 3]] == 0).all() and (b.grad[[1, 3]] == 0).all()


@pytest.mark.parametrize("reduction", ["mean", "sum", "batchmean", "none"])
def test_08_fully_masked_batch(target: Target, reduction: str) -> None:
    s = _leaf(torch.randn(3, 20), target)
    labels = torch.full((3,), -100, device=target.device)
    loss = fastkd.kd_loss(s, s.detach(), labels, kd_ratio=0.5, reduction=reduction, **target.options).sum()
    assert loss.item() == 0 and loss.requires_grad
    loss.backward()
    assert s.grad is not None and (s.grad == 0).all()


@pytest.mark.parametrize("as_tensor", [False, True])
def test_09_micro_batches_add_up(target: Target, as_tensor: bool) -> None:
    s, t = torch.randn(6, 40), torch.randn(6, 40).to(target.device)
    labels = torch.tensor([3, -100, -100, -100, 5, 7], device=target.device)
    whole = _leaf(s, target)
    loss = fastkd.kd_loss(whole, t, labels, kd_ratio=0.5, **target.options)
    loss.backward()
    parts, total = _leaf(s, target), torch.zeros((), device=target.device)
    count = torch.tensor(3) if as_tensor else 3
    for rows in (slice(0, 1), slice(1, 4), slice(4, 6)):
        part = fastkd.kd_loss(
            parts[rows], t[rows], labels[rows], kd_ratio=0.5, num_items=count, **target.options
        )
        part.backward()
        total = total + part.detach()
    assert_value(total, loss.detach())
    assert_gradient(parts.grad, whole.grad)


def test_10_reduction_none_with_weights(target: Target) -> None:
    s, t = torch.randn(5, 30), torch.randn(5, 30).to(target.device)
    weights, upstream = torch.rand(5).to(target.device), torch.randn(5).to(target.device)
    a = _leaf(s, target)
    loss = fastkd.kd_loss(a, t, reduction="none", token_weights=weights, **target.options)
    loss.backward(upstream)
    b = _leaf(s, target)
    (fastkd.kd_loss(b, t, reduction="none", **target.options) * weights * upstream).sum().backward()
    assert_gradient(a.grad, b.grad)
    _, by_s, _ = reference_gradients(a, t, reduction="sum", token_weights=weights * upstream)
    assert_gradient(a.grad, by_s)


def test_11_padding_takes_no_probability(target: Target) -> None:
    s, t = torch.randn(3, 40), torch.randn(3, 40)
    narrow = fastkd.kd_loss(s.to(target.device), t.to(target.device), **target.options)
    wide = F.pad(t, (0, 8))
    loss = fastkd.kd_loss(s.to(target.device), wide.to(target.device), vocab_size=40, **target.options)
    assert_value(loss, narrow)
    with pytest.raises(ValueError, match="vocab_size"):
        fastkd.kd_loss(s.to(target.device), wide.to(target.device), **target.options)


def test_12_directions_and_mixture_weights(target: Target) -> None:
    s, t = torch.randn(3, 20).to(target.device), torch.randn(3, 20).to(target.device)

    def value(a: torch.Tensor, b: torch.Tensor, divergence: str, beta: float | None = None) -> torch.Tensor:
        return fastkd.kd_loss(a, b, divergence=divergence, beta=beta, **target.options)

    forward = (F.softmax(t, -1) * (F.log_softmax(t, -1) - F.log_softmax(s, -1))).sum(-1).mean()
    assert_value(value(s, t, "forward_kl"), forward)
    assert_value(value(t, s, "reverse_kl"), forward)
    assert_value(value(s, t, "jsd", 0.2), value(t, s, "jsd", 0.8))
    assert (value(s, t, "jsd", 0.2) - value(s, t, "jsd", 0.8)).abs() > 1e-3
    # Near beta = 0 the mixture is the student, and the divergence b * KL(p, q).
    assert_value(value(s, t, "jsd", 1e-3) / 1e-3, forward, rtol=1e-2)


def test_13_backward_twice(target: Target) -> None:
    s, t = torch.randn(4, 60), torch.randn(4, 60).to(target.device)
    a = _leaf(s, target)
    loss = 5.0 * fastkd.kd_loss(a, t, **target.options)
    (first,) = torch.autograd.grad(loss, a, retain_graph=True)
    kept = first.clone()
    (second,) = torch.autograd.grad(loss, a, retain_graph=True)
    (third,) = torch.autograd.grad(loss, a)
    assert torch.equal(first, kept) and torch.equal(second, kept) and torch.equal(third, kept)
    _, by_s, _ = reference_gradients(a, t)
    assert_gradient(first, 5.0 * by_s)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, a)


def test_13_inputs_are_left_alone(target: Target) -> None:
    s, t = torch.randn(4, 60), torch.randn(4, 60)
    a, b = _leaf(s, target), _leaf(t, target)
    (3.0 * fastkd.kd_loss(a, b, **target.options)).backward()
    assert torch.equal(a.detach().cpu(), s) and torch.equal(b.detach().cpu(), t)
    assert a._version == 0 and b._version == 0


def test_16_every_vocabulary_size_has_a_kernel(target: Target) -> None:
    sizes = (1, 3, 1023, 1024, 1025, 4097) if target.backend == "triton" else (1, 1023, 1025, 65_537, 262_144)
    for columns in sizes:
        s, t = torch.randn(1, columns).to(target.device), torch.randn(1, columns).to(target.device)
        expected, by_s, _ = reference_gradients(s, t)
        x = s.requires_grad_()
        loss = fastkd.kd_loss(x, t, **target.options)
        loss.backward()
        assert_value(loss.detach().cpu(), expected.cpu())
        assert_gradient(x.grad, by_s)


@pytest.mark.parametrize("bad", [float("nan"), INF])
def test_nan_stays_in_its_token(target: Target, bad: float) -> None:
    for side in (0, 1):
        rows = [torch.randn(4, 70), torch.randn(4, 70)]
        rows[side][2, 5] = bad
        s, t = _leaf(rows[0], target), rows[1].to(target.device)
        loss = fastkd.kd_loss(s, t, reduction="none", **target.options)
        loss.sum().backward()
        assert loss.isnan().tolist() == [False, False, True, False]
        assert s.grad[2].isnan().any() and torch.isfinite(s.grad[[0, 1, 3]]).all()


def test_two_runs_give_the_same_bits(target: Target) -> None:
    s, t = torch.randn(37, 2111).to(target.device), torch.randn(37, 2111).to(target.device)
    runs = []
    for threads in (1, 2, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        x = s.clone().requires_grad_()
        loss = fastkd.kd_loss(x, t, temperature=1.7, divergence="jsd", **target.options)
        loss.backward()
        torch.set_num_threads(before)
        runs.append((loss.detach(), x.grad))
    if target.backend == "reference":
        runs = runs[1:]  # torch's own reductions may split by thread
    assert all(torch.equal(a, runs[0][0]) and torch.equal(b, runs[0][1]) for a, b in runs)


def test_float16_gradients_do_not_underflow(target: Target) -> None:
    """A GradScaler multiplies the loss so that small gradients survive: they must still be there."""
    s, t = (torch.randn(64, 3000) * 0.1).half(), (torch.randn(64, 3000) * 0.1).half()
    x = _leaf(s, target)
    (1024.0 * fastkd.kd_loss(x, t.to(target.device), **target.options)).backward()
    _, by_s, _ = reference_gradients(x, t.to(target.device))
    assert_gradient(x.grad, 1024.0 * by_s, factor=1.5)
