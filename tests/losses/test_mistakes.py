"""Mistakes found in public distillation losses, one named test for each."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.cases import EVERY_CASE
from support.closeness import assert_gradient, assert_value, during
from support.oracle import reference_gradients
from support.peak import peak_of
from support.targets import Target
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import fastkd
from fastkd.divergences import DIVERGENCES

INF = float("inf")
FLOAT32_MAX = torch.finfo(torch.float32).max


def _leaf(x: Tensor, target: Target) -> Tensor:
    return x.to(target.device).detach().requires_grad_()


def _run(target: Target, s: Tensor, t: Tensor, labels: Tensor, **options: object) -> tuple[Tensor, ...]:
    """The loss, the student's gradient and the teacher's gradient, moved to the CPU."""
    a, b = _leaf(s, target), _leaf(t, target)
    loss = fastkd.kd_loss(a, b, labels.to(target.device), **options, **target.options)  # type: ignore[arg-type]
    loss.sum().backward()
    assert a.grad is not None and b.grad is not None
    return loss.detach().cpu(), a.grad.cpu(), b.grad.cpu()


@EVERY_CASE
@pytest.mark.repeats(interpreted=6)
def test_01_rows_without_common_mass(target: Target, divergence: str, parameters: dict[str, float]) -> None:
    # Nearly all probabilities of both sides underflow float32; their logarithms and powers must not.
    s, t = torch.full((1, 400), -300.0), torch.full((1, 400), -300.0)
    s[0, 0], t[0, 1], t[0, 2] = 200.0, 200.0, 199.0
    labels = torch.tensor([2])
    loss, grad_s, grad_t = _run(target, s, t, labels, divergence=divergence, **parameters)
    expected, by_s, by_t = reference_gradients(s, t, labels, divergence=divergence, **parameters)
    if expected > FLOAT32_MAX:
        assert loss == INF
        return
    assert_value(loss, expected)
    # Exponents of 500 are rounded by 3e-5, and a teacher's gradient is a small difference of two of them.
    for grad, exact in ((grad_s, by_s), (grad_t, by_t)):
        assert (grad - exact).norm() <= 1e-6 * 500 * max(1.0, exact.norm())


@EVERY_CASE
@pytest.mark.repeats(interpreted=6)
def test_02_padding_of_minus_infinity(target: Target, divergence: str, parameters: dict[str, float]) -> None:
    options = {"kd_ratio": 0.5, "temperature": 2.0, "divergence": divergence, **parameters}
    for count in (1, 30, 70):
        kept = slice(0, 100 - count)
        s, t, labels = torch.randn(3, 100), torch.randn(3, 100), torch.randint(0, 20, (3,))
        s[:, 100 - count :] = t[:, 100 - count :] = -INF
        loss, grad_s, grad_t = _run(target, s, t, labels, **options)
        expected, by_s, by_t = reference_gradients(s[:, kept], t[:, kept], labels, **options)
        with during(count=count):
            assert_value(loss, expected)
            assert_gradient(grad_s[:, kept], by_s)
            assert_gradient(grad_t[:, kept], by_t, factor=4)
            assert (grad_s[:, 100 - count :] == 0).all() and (grad_t[:, 100 - count :] == 0).all()


# The lowest finite number is a mask, too: models set the logits of forbidden tokens to it.
@pytest.mark.parametrize("mask", [-INF, torch.finfo(torch.float32).min])
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.repeats(interpreted=6)
def test_02_whole_blocks_of_minus_infinity(target: Target, divergence: str, mask: float) -> None:
    s, t, labels = torch.randn(2, 5000), torch.randn(2, 5000), torch.tensor([4300, 4999])
    s[1] -= 200.0
    t[1] -= 200.0
    s[:, :4200] = t[:, :4200] = mask
    options = {"divergence": divergence, "kd_ratio": 0.5}
    loss, grad_s, grad_t = _run(target, s, t, labels, **options)
    kept = slice(4200, None)
    expected, by_s, by_t = reference_gradients(s[:, kept], t[:, kept], labels - 4200, **options)
    assert_value(loss, expected)
    assert_gradient(grad_s[:, kept], by_s)
    assert_gradient(grad_t[:, kept], by_t, factor=4)
    assert (grad_s[:, :4200] == 0).all() and (grad_t[:, :4200] == 0).all()


@EVERY_CASE
@pytest.mark.repeats(interpreted=6)
def test_02_one_sided_minus_infinity(target: Target, divergence: str, parameters: dict[str, float]) -> None:
    for side in ("student", "teacher", "one entry each"):
        s, t, labels = torch.randn(1, 50), torch.randn(1, 50), torch.tensor([7])
        if side != "teacher":
            s[0, 3] = -INF
        if side != "student":
            t[0, 5] = -INF
        loss, grad_s, grad_t = _run(target, s, t, labels, divergence=divergence, **parameters)
        expected, by_s, by_t = reference_gradients(s, t, labels, divergence=divergence, **parameters)
        with during(side=side):
            # If one side has probability 0 where the other does not, inf is right and NaN is not. A
            # divergence without a bound may also exceed float32.
            if expected.to(loss.dtype) == INF:
                assert loss == INF
                continue
            assert_value(loss, expected)
            assert_gradient(grad_s, by_s)
            assert_gradient(grad_t, by_t, factor=4)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.repeats(interpreted=6)
def test_03_small_temperature(target: Target, divergence: str) -> None:
    s, t, labels = torch.randn(4, 200) * 5, torch.randn(4, 200) * 5, torch.tensor([0, 1, 2, 3])
    options = {"temperature": 0.05, "divergence": divergence}
    loss, grad_s, grad_t = _run(target, s, t, labels, **options)
    expected, by_s, by_t = reference_gradients(s, t, labels, **options)
    assert_value(loss, expected, rtol=1e-5)
    if expected.to(loss.dtype).isinf().any():
        return  # an unbounded divergence exceeds float32
    # An exponent of several hundred has a relative rounding of 6e-8, which the exponential turns into 3e-5.
    assert_gradient(grad_s, by_s, factor=40)
    assert_gradient(grad_t, by_t, factor=40)


@EVERY_CASE
@pytest.mark.repeats(interpreted=6)
def test_04_near_identical_models(target: Target, divergence: str, parameters: dict[str, float]) -> None:
    for dtype in (torch.bfloat16,) if target.interpreted else (torch.float32, torch.bfloat16, torch.float16):
        s, labels = (torch.randn(4, 2000) * 3).to(dtype), torch.arange(4)
        t = s.clone()
        # Every 50th logit differs by a rounding step of 16 bits; the other probabilities differ only
        # because the normaliser does.
        step = torch.finfo(torch.bfloat16 if dtype == torch.float32 else dtype).eps
        t[:, ::50] += 2 * step * t[:, ::50].abs()
        options = {"divergence": divergence, "reduction": "sum", **parameters}
        _, *grads = _run(target, s, t, labels, **options)
        _, *exact = reference_gradients(s, t, labels, **options)
        for grad, by in zip(grads, exact, strict=True):
            error = (grad.double() - by).norm() / by.norm()
            rounding = (by.to(dtype).double() - by).norm() / by.norm()
            if dtype == torch.float16:  # stored scaled, so rounded a second time when the scale is applied
                rounding = rounding + torch.finfo(dtype).eps / 2
            if dtype == torch.float32:  # q - p cancels: the two differ by only 1 in 1000
                rounding = 1000 * torch.finfo(dtype).eps
            assert error <= 2 * rounding, f"{dtype}: {error:.2e} against a rounding of {rounding:.2e}"


@EVERY_CASE
@pytest.mark.repeats(interpreted=6)
def test_04_identical_models(target: Target, divergence: str, parameters: dict[str, float]) -> None:
    columns = 3000 if target.interpreted else 100_000
    for dtype in (torch.float16,) if target.interpreted else (torch.float32, torch.bfloat16, torch.float16):
        s, labels = (torch.randn(2, columns) * 4).to(dtype), torch.tensor([2, 1])
        loss, grad_s, grad_t = _run(target, s, s, labels, divergence=divergence, **parameters)
        with during(dtype=dtype):
            assert abs(loss.item()) < 1e-6
            assert grad_s.abs().max().item() < 1e-9 and grad_t.abs().max().item() < 1e-9


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_05_label_gradient_is_rounded_once(target: Target, dtype: torch.dtype) -> None:
    # softmax(s)[label] is close to 1: if it were rounded to 16 bits first, subtracting 1 would leave 0.
    s = torch.zeros(1, 10)
    s[0, 4] = 12.0
    s = _leaf(s.to(dtype), target)
    labels = torch.tensor([4], device=target.device)
    fastkd.kd_loss(s, torch.zeros_like(s), labels, kd_ratio=0.0, **target.options).backward()
    _, by_s, _ = reference_gradients(s, torch.zeros_like(s), labels, kd_ratio=0.0)
    assert by_s[0, 4] != 0
    relative = (s.grad.double() - by_s).abs() / by_s.abs()
    assert relative.max() <= torch.finfo(dtype).eps * (1 if dtype == torch.bfloat16 else 2)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.repeats(interpreted=6)
def test_06_t_squared_reaches_the_gradient(target: Target, divergence: str) -> None:
    s, t, labels = torch.randn(3, 50), torch.randn(3, 50), torch.tensor([1, 2, 3])
    options = {"temperature": 3.0, "divergence": divergence}
    squared = _run(target, s, t, labels, t_squared=True, **options)
    plain = _run(target, s, t, labels, t_squared=False, **options)
    for with_factor, without in zip(squared, plain, strict=True):
        torch.testing.assert_close(with_factor, 9 * without)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.repeats(interpreted=6)
def test_07_ignore_index_in_the_soft_term(target: Target, divergence: str) -> None:
    s, t = torch.randn(4, 50), torch.randn(4, 50)
    labels = torch.tensor([1, -100, 2, -100])
    loss, grad_s, grad_t = _run(target, s, t, labels, divergence=divergence)
    kept, by_s, by_t = _run(target, s[::2], t[::2], labels[::2], divergence=divergence)
    assert_value(loss, kept)
    assert_gradient(grad_s[::2], by_s)
    assert_gradient(grad_t[::2], by_t)
    assert (grad_s[1::2] == 0).all() and (grad_t[1::2] == 0).all()


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.repeats(interpreted=6)
def test_07_ignored_rows_are_not_read(target: Target, divergence: str) -> None:
    s, t = torch.randn(4, 50), torch.randn(4, 50)
    s[1], t[3] = float("nan"), INF
    labels = torch.tensor([1, -100, 2, -100])
    options = {"divergence": divergence, "kd_ratio": 0.5, "label_smoothing": 0.1, "z_loss": 1e-3}
    loss, grad_s, grad_t = _run(target, s, t, labels, **options)
    assert torch.isfinite(loss) and torch.isfinite(grad_s).all() and torch.isfinite(grad_t).all()
    assert (grad_s[[1, 3]] == 0).all() and (grad_t[[1, 3]] == 0).all()


@pytest.mark.parametrize("reduction", ["mean", "sum", "batchmean", "none"])
def test_08_fully_masked_batch(target: Target, reduction: str) -> None:
    for divergence in ("forward_kl", "jsd", "alpha", "decoupled"):
        s = _leaf(torch.randn(3, 20), target)
        labels = torch.full((3,), -100, device=target.device)
        options = {"divergence": divergence, "kd_ratio": 0.5, "reduction": reduction}
        loss = fastkd.kd_loss(s, s.detach(), labels, **options, **target.options).sum()
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


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.repeats(interpreted=6)
def test_11_padding_gets_no_probability(target: Target, divergence: str) -> None:
    s, t, labels = torch.randn(3, 40), torch.randn(3, 40), torch.tensor([1, 2, 39])
    options = {"divergence": divergence, "kd_ratio": 0.5, "label_smoothing": 0.1}
    loss, grad_s, grad_t = _run(target, F.pad(s, (0, 3)), F.pad(t, (0, 8)), labels, vocab_size=40, **options)
    expected, by_s, by_t = _run(target, s, t, labels, **options)
    assert_value(loss, expected)
    assert_gradient(grad_s, F.pad(by_s, (0, 3)))
    assert_gradient(grad_t, F.pad(by_t, (0, 8)))
    with pytest.raises(ValueError, match="vocab_size"):
        _run(target, s, F.pad(t, (0, 8)), labels, **options)


def test_12_directions_and_mixture_weights(target: Target) -> None:
    s, t = torch.randn(3, 20).to(target.device), torch.randn(3, 20).to(target.device)

    def value(a: Tensor, b: Tensor, divergence: str, **parameters: float) -> Tensor:
        return fastkd.kd_loss(a, b, divergence=divergence, **parameters, **target.options)

    forward = (F.softmax(t, -1) * (F.log_softmax(t, -1) - F.log_softmax(s, -1))).sum(-1).mean()
    assert_value(value(s, t, "forward_kl"), forward)
    assert_value(value(t, s, "reverse_kl"), forward)
    assert_value(value(s, t, "jsd", beta=0.2), value(t, s, "jsd", beta=0.8))
    assert (value(s, t, "jsd", beta=0.2) - value(s, t, "jsd", beta=0.8)).abs() > 1e-3
    # Near beta = 0 the mixture is the student, and the divergence is about beta * KL(p, q).
    assert_value(value(s, t, "jsd", beta=1e-3) / 1e-3, forward, rtol=1e-2)
    assert_value(value(s, t, "skew_forward_kl", beta=0.0), forward)
    assert_value(value(s, t, "skew_forward_kl", beta=0.2), value(t, s, "skew_reverse_kl", beta=0.2))
    assert_value(value(s, t, "skew_forward_kl", beta=1e-3), forward, rtol=1e-2)
    for symmetric in ("jeffreys", "tvd", "hellinger"):
        assert_value(value(s, t, symmetric), value(t, s, symmetric))
    assert_value(value(s, t, "jeffreys"), value(s, t, "forward_kl") + value(s, t, "reverse_kl"))


def test_12_the_family_of_powers(target: Target) -> None:
    s, t = torch.randn(1, 20).to(target.device), torch.randn(1, 20).to(target.device)

    def value(a: Tensor, b: Tensor, divergence: str, **parameters: float) -> Tensor:
        return fastkd.kd_loss(a, b, divergence=divergence, **parameters, **target.options)

    assert_value(value(s, t, "alpha", alpha=0.5), 4 * value(s, t, "hellinger"))
    assert_value(value(s, t, "alpha", alpha=0.3), value(t, s, "alpha", alpha=0.7))
    assert_value(value(s, t, "alpha", alpha=0.3), value(s, t, "alpha_beta", alpha=0.3, beta=0.7))
    assert_value(
        value(s, t, "alpha_beta", alpha=0.2, beta=2.0), value(t, s, "alpha_beta", alpha=2.0, beta=0.2)
    )
    # Near the ends of the range the powers become logarithms.
    assert_value(value(s, t, "alpha", alpha=0.999), value(s, t, "forward_kl"), rtol=1e-2)
    assert_value(value(s, t, "alpha", alpha=0.001), value(s, t, "reverse_kl"), rtol=1e-2)
    assert_value(value(s, t, "renyi", alpha=0.999), value(s, t, "forward_kl"), rtol=1e-2)
    power = 1 - 0.3 * 0.7 * value(s, t, "alpha", alpha=0.3)
    assert_value(value(s, t, "renyi", alpha=0.3), torch.log(power) / (0.3 - 1))


def test_12_the_label_and_the_rest(target: Target) -> None:
    s, t = torch.randn(4, 20).to(target.device), torch.randn(4, 20).to(target.device)
    labels = torch.tensor([0, 5, 19, 3], device=target.device)

    def value(**options: object) -> Tensor:
        return fastkd.kd_loss(s, t, labels, reduction="none", **options, **target.options)  # type: ignore[arg-type]

    target_part = value(divergence="decoupled", beta=0.0)
    rest_part = value(divergence="decoupled", beta=1.0) - target_part
    # The chain rule of the divergence (Zhao et al. 2022, equation 7).
    share = 1 - F.softmax(t, -1).gather(-1, labels[:, None])[:, 0]
    assert_value(target_part + share * rest_part, value(divergence="forward_kl"))
    assert_value(target_part + 8 * rest_part, value(divergence="decoupled", beta=8.0), rtol=1e-5)


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


def test_13_inputs_do_not_change(target: Target) -> None:
    s, t = torch.randn(4, 60), torch.randn(4, 60)
    a, b = _leaf(s, target), _leaf(t, target)
    (3.0 * fastkd.kd_loss(a, b, **target.options)).backward()
    assert torch.equal(a.detach().cpu(), s) and torch.equal(b.detach().cpu(), t)
    assert a._version == 0 and b._version == 0


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_14_nothing_waits_for_the_device(divergence: str, device: str) -> None:
    """No value is read on the host: fake tensors have none, so reading one raises.

    Fake tensors of a GPU need no GPU, except for a backward, which therefore runs only on the CPU.
    """
    with FakeTensorMode():
        s, t, weights, count = (torch.empty(size, device=device) for size in ((4, 30), (4, 30), (4,), ()))
        labels = torch.empty(4, dtype=torch.int64, device=device)
        s.requires_grad_(device == "cpu")
        options = {"divergence": divergence, "kd_ratio": 0.5, "token_weights": weights}
        for reduction in ("mean", "sum", "batchmean", "none"):
            items = count if reduction == "mean" else None
            loss, metrics = fastkd.kd_loss(
                s, t, labels, reduction=reduction, num_items=items, return_metrics=True, **options
            )
            assert loss.shape == ((4,) if reduction == "none" else ()) and metrics.kd.shape == ()
            if device == "cpu":
                loss.sum().backward()


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


def test_17_a_sparse_teacher_is_never_made_dense() -> None:
    added = peak_of("""
        torch.set_num_threads(2)
        s = torch.randn(256, 60_000)
        indices = torch.arange(64).expand(256, 64).contiguous()
        logprobs = torch.log_softmax(torch.randn(256, 64), -1) - 0.1
        def call():
            for tail in ("renormalize", "bucket", "drop"):
                fastkd.kd_loss(s, fastkd.SparseTeacher(indices, logprobs, tail))
        print(added(call))
    """)
    one_logits_tensor = 256 * 60_000 * 4 / 2**20
    assert added < one_logits_tensor / 4


def test_17_a_sparse_teacher_needs_only_the_gradients_memory() -> None:
    added = peak_of("""
        s = torch.randn(256, 60_000, requires_grad=True)
        indices = torch.arange(64).expand(256, 64).contiguous()
        logprobs = torch.log_softmax(torch.randn(256, 64), -1) - 0.1
        def call():
            fastkd.kd_loss(s, fastkd.SparseTeacher(indices, logprobs)).backward()
            s.grad = None
        print(added(call))
    """)
    gradient = 256 * 60_000 * 4 / 2**20
    assert 0.9 * gradient < added < 1.0 * gradient + 12


def test_20_softcap_and_scale_of_the_head(target: Target) -> None:
    h, w, t = torch.randn(5, 8), torch.randn(40, 8), torch.randn(5, 40)
    h, w, t = _leaf(h, target), w.to(target.device), t.to(target.device)
    options = {"logit_scale": 2.5, "logit_softcap": 4.0}
    fused = fastkd.linear_kd_loss(h, w, t, **options, **target.options)
    logits = 4.0 * torch.tanh(2.5 * (h @ w.t()) / 4.0)
    plain = fastkd.kd_loss(logits, t, **target.options)
    assert_value(fused.detach(), plain.detach())
    (by_fused,), (by_plain,) = torch.autograd.grad(fused, h), torch.autograd.grad(plain, h)
    assert_gradient(by_fused, by_plain, factor=4)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.repeats(interpreted=6)
def test_nan_stays_in_its_token(target: Target, divergence: str) -> None:
    labels = torch.tensor([1, 2, 3, 4])
    for bad, side in ((float("nan"), 0), (float("nan"), 1), (INF, 0), (INF, 1)):
        rows = [torch.randn(4, 70), torch.randn(4, 70)]
        rows[side][2, 5] = bad
        loss, grad_s, _ = _run(target, *rows, labels, divergence=divergence, reduction="none")
        with during(bad=bad, side=side):
            assert loss.isnan().tolist() == [False, False, True, False]
            assert grad_s[2].isnan().any() and torch.isfinite(grad_s[[0, 1, 3]]).all()


@pytest.mark.parametrize("divergence", ["forward_kl", "jsd", "alpha_beta", "decoupled"])
def test_two_runs_give_the_same_bits(target: Target, divergence: str) -> None:
    rows = 5 if target.interpreted else 67
    s, t = torch.randn(rows, 2111).to(target.device), torch.randn(rows, 2111).to(target.device)
    labels = torch.arange(rows, device=target.device)
    runs = []
    for threads in (1, 2, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        x = s.clone().requires_grad_()
        loss = fastkd.kd_loss(x, t, labels, temperature=1.7, divergence=divergence, **target.options)
        loss.backward()
        torch.set_num_threads(before)
        runs.append((loss.detach(), x.grad))
    if target.backend == "reference":
        runs = runs[1:]  # the split of torch's own reductions may depend on the number of threads
    assert all(torch.equal(a, runs[0][0]) and torch.equal(b, runs[0][1]) for a, b in runs)


def test_float16_gradients_do_not_underflow(target: Target) -> None:
    """A GradScaler multiplies the loss so that small gradients survive in float16; fastkd must keep them."""
    s, t = (torch.randn(64, 3000) * 0.1).half(), (torch.randn(64, 3000) * 0.1).half()
    x = _leaf(s, target)
    (1024.0 * fastkd.kd_loss(x, t.to(target.device), **target.options)).backward()
    _, by_s, _ = reference_gradients(x, t.to(target.device))
    assert_gradient(x.grad, 1024.0 * by_s, factor=1.5)
