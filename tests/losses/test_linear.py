"""Compare linear_kd_loss, with every kind of chunking, with the float64 oracle on materialised logits."""

from __future__ import annotations

import pytest
import torch
from support.closeness import ROUNDING, assert_gradient, assert_value
from support.oracle import kd_loss as oracle_loss
from support.targets import Target
from torch import Tensor

import fastkd
from fastkd.divergences import DIVERGENCES
from fastkd.ops import head, linear


def softcapped(x: Tensor, cap: float | None) -> Tensor:
    return x if cap is None else cap * torch.tanh(x / cap)


class Heads:
    """Random heads, and their loss in two ways: fused, and by the definition in float64."""

    def __init__(
        self, dtype: torch.dtype = torch.float32, device: str = "cpu", shape=(2, 7), v_s=90, v_t=97
    ) -> None:
        def leaf(*size: int) -> Tensor:
            return (torch.randn(*size) * 0.7).to(dtype).to(device).requires_grad_()

        self.s = leaf(*shape, 12), leaf(v_s, 12), leaf(v_s)
        self.t = leaf(*shape, 20), leaf(v_t, 20), leaf(v_t)
        self.labels = torch.randint(0, 90, shape, device=device)
        self.labels[0, 2] = -100

    def fused(self, *, s_cap=None, s_scale=1.0, t_cap=None, t_scale=1.0, **options) -> Tensor:
        teacher = fastkd.HiddenTeacher(*self.t, logit_scale=t_scale, logit_softcap=t_cap)
        return fastkd.linear_kd_loss(
            self.s[0],
            self.s[1],
            teacher,
            self.labels,
            student_bias=self.s[2],
            logit_scale=s_scale,
            logit_softcap=s_cap,
            vocab_size=90,
            **options,
        )

    def exact(
        self, *, s_cap=None, s_scale=1.0, t_cap=None, t_scale=1.0, **options
    ) -> tuple[Tensor, list[Tensor]]:
        doubles = [x.detach().double().requires_grad_() for x in (*self.s, *self.t)]
        hs, ws, bs, ht, wt, bt = doubles
        student = softcapped((hs @ ws.t() + bs) * s_scale, s_cap)
        teacher = softcapped((ht @ wt.t() + bt) * t_scale, t_cap)
        loss = oracle_loss(student, teacher, self.labels, vocab_size=90, **options)
        return loss.detach(), list(torch.autograd.grad(loss.sum(), doubles))

    def compare(
        self, chunk_size: int | None = None, factor: float = 1.0, backend: str | None = None, **options
    ) -> None:
        loss = self.fused(chunk_size=chunk_size, backend=backend, **options)
        expected, grads = self.exact(**options)
        sixteen = self.s[0].dtype in (torch.bfloat16, torch.float16)
        # With a 16-bit head the logits themselves are rounded to 16 bits.
        assert_value(
            loss.detach().cpu(),
            expected.cpu(),
            rtol=2e-2 if sixteen else None,
            atol=2e-2 if sixteen else 1e-6,
        )
        loss.sum().backward()
        for leaf, grad in zip((*self.s, *self.t), grads, strict=True):
            assert leaf.grad is not None and leaf.grad.dtype == leaf.dtype
            assert_gradient(leaf.grad, grad, factor=factor)


@pytest.mark.repeats(27, interpreted=7)
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("chunk_size", [None, 1, 3, 14])
def test_every_gradient(target: Target, divergence: str, chunk_size: int | None) -> None:
    Heads(device=target.device).compare(
        chunk_size,
        factor=4,
        backend=target.backend,
        divergence=divergence,
        kd_ratio=0.5,
        temperature=2.0,
        label_smoothing=0.1,
    )


@pytest.mark.parametrize("reduction", ["mean", "sum", "batchmean", "none"])
@pytest.mark.parametrize("chunk_size", [None, 4])
def test_reductions(target: Target, reduction: str, chunk_size: int | None) -> None:
    Heads(device=target.device).compare(
        chunk_size, factor=4, backend=target.backend, reduction=reduction, kd_ratio=0.3
    )


def test_upstream_per_token(target: Target) -> None:
    heads, upstream = Heads(device=target.device), torch.randn(2, 7, device=target.device)
    loss = heads.fused(reduction="none", chunk_size=4, backend=target.backend)
    loss.backward(upstream)
    doubles = [x.detach().double().requires_grad_() for x in (*heads.s, *heads.t)]
    exact = oracle_loss(
        doubles[0] @ doubles[1].t() + doubles[2],
        doubles[3] @ doubles[4].t() + doubles[5],
        heads.labels,
        vocab_size=90,
        reduction="none",
    )
    for leaf, grad in zip(
        (*heads.s, *heads.t), torch.autograd.grad(exact, doubles, upstream.double()), strict=True
    ):
        assert_gradient(leaf.grad, grad, factor=4)


@pytest.mark.parametrize("chunk_size", [None, 3])
@pytest.mark.parametrize("keep", [False, True])
def test_upstream_scalar_and_second_backward(target: Target, chunk_size: int | None, keep: bool) -> None:
    heads = Heads(device=target.device)
    loss = 3.0 * heads.fused(chunk_size=chunk_size, backend=target.backend)
    loss.backward(retain_graph=keep)
    _, grads = heads.exact()
    for leaf, grad in zip((*heads.s, *heads.t), grads, strict=True):
        assert_gradient(leaf.grad, 3.0 * grad, factor=4)
    if keep:
        loss.backward()
        for leaf, grad in zip((*heads.s, *heads.t), grads, strict=True):
            assert_gradient(leaf.grad, 6.0 * grad, factor=4)


# Softcaps and logit scales of real heads: Gemma 2 (cap 30), Cohere (scale), Granite (1 / scaling).
@pytest.mark.parametrize("chunk_size", [None, 5])
@pytest.mark.parametrize(
    "head",
    [{"s_cap": 3.0}, {"t_cap": 2.0}, {"s_scale": 0.25, "t_scale": 4.0}, {"s_cap": 3.0, "s_scale": 2.0}],
)
def test_20_softcap_and_scale_are_honoured(
    target: Target, head: dict[str, float], chunk_size: int | None
) -> None:
    Heads(device=target.device).compare(chunk_size, factor=4, backend=target.backend, kd_ratio=0.5, **head)


@pytest.mark.parametrize("chunk_size", [None, 3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_dtypes(target: Target, dtype: torch.dtype, chunk_size: int | None) -> None:
    if not target.runs(dtype):
        pytest.skip(f"no {dtype} here")
    factor = {torch.bfloat16: 8.0, torch.float16: 8.0, torch.float64: 1.0}[dtype]
    heads = Heads(dtype, target.device)
    heads.compare(chunk_size, factor=factor, backend=target.backend, kd_ratio=0.5, temperature=2.0)


def test_weight_gradient_is_summed_in_float32(target: Target) -> None:
    """The products of many chunks are summed in float32; a bfloat16 sum would stop growing."""
    rows = 64 if target.backend == "triton" and target.device == "cpu" else 512
    h = torch.ones(rows, 4, dtype=torch.bfloat16, device=target.device)
    w = torch.randn(50, 4).to(torch.bfloat16).to(target.device).requires_grad_()
    t = torch.randn(1, 50).to(target.device).expand(rows, 50)
    fastkd.linear_kd_loss(h, w, t, reduction="sum", chunk_size=1, **target.options).backward()
    exact = w.detach().double().requires_grad_()
    oracle_loss(h.double() @ exact.t(), t.double(), reduction="sum").backward()
    error = (w.grad.double() - exact.grad).norm() / exact.grad.norm()
    assert error < 3 * ROUNDING[torch.bfloat16]


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_dense_logits_as_teacher(target: Target, chunk_size: int | None) -> None:
    heads = Heads(device=target.device)
    wide = torch.randn(2, 8, 97, device=target.device)
    teacher = wide[:, :-1].detach()  # the shift leaves strides that do not flatten
    teacher.requires_grad_()
    loss = fastkd.linear_kd_loss(
        heads.s[0], heads.s[1], teacher, heads.labels, kd_ratio=0.5, vocab_size=90, chunk_size=chunk_size,
        backend=target.backend,
    )  # fmt: skip
    loss.backward()
    s, t = (
        [x.detach().double().requires_grad_() for x in heads.s[:2]],
        teacher.detach().double().requires_grad_(),
    )
    exact = oracle_loss(s[0] @ s[1].t(), t, heads.labels, kd_ratio=0.5, vocab_size=90)
    exact.backward()
    assert_value(loss.detach().cpu(), exact.detach().cpu())
    for leaf, grad in ((heads.s[0], s[0].grad), (heads.s[1], s[1].grad), (teacher, t.grad)):
        assert_gradient(leaf.grad, grad, factor=4)


def test_without_a_divergence_no_teacher_logits_are_needed() -> None:
    heads = Heads()
    heads.t[0].data.fill_(float("nan"))
    loss = heads.fused(kd_ratio=0.0)
    loss.backward()
    assert torch.isfinite(loss)
    assert (heads.t[1].grad == 0).all() and torch.isfinite(heads.s[1].grad).all()


def test_only_the_wanted_gradients() -> None:
    """Inputs that do not require a gradient get none."""
    heads = Heads()
    for x in (heads.s[1], heads.s[2], *heads.t):
        x.requires_grad_(False)
    heads.fused().backward()
    assert heads.s[0].grad is not None
    assert all(x.grad is None for x in (heads.s[1], heads.s[2], *heads.t))


def test_no_tokens() -> None:
    h, w = torch.zeros(0, 4, requires_grad=True), torch.randn(9, 4, requires_grad=True)
    fastkd.linear_kd_loss(h, w, torch.zeros(0, 9)).backward()
    assert h.grad.shape == (0, 4) and (w.grad == 0).all()


def test_modules_are_the_functions() -> None:
    """The modules give the same losses as the functions with the same options."""
    s, t, y = torch.randn(4, 9), torch.randn(4, 9), torch.randint(0, 9, (4,))
    module = fastkd.KDLoss(kd_ratio=0.5, temperature=2.0)
    assert torch.equal(module(s, t, y), fastkd.kd_loss(s, t, y, kd_ratio=0.5, temperature=2.0))
    assert torch.equal(
        module(s, t, y, num_items=8), fastkd.kd_loss(s, t, y, kd_ratio=0.5, temperature=2.0, num_items=8)
    )
    assert "temperature=2.0" in repr(module)
    heads = Heads()
    teacher = fastkd.HiddenTeacher(*heads.t)
    module = fastkd.LinearKDLoss(vocab_size=90, chunk_size=3)
    expected = fastkd.linear_kd_loss(*heads.s[:2], teacher, heads.labels, vocab_size=90, chunk_size=3)
    assert torch.equal(module(*heads.s[:2], teacher, heads.labels), expected)


@pytest.mark.parametrize("elements", [1, 12 * 7, 12 * 50, 10**6])
def test_a_16_bit_product_in_parts(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weight's gradient does not depend on how many of its rows are multiplied and added at a time."""
    heads = Heads(torch.bfloat16)
    heads.fused(chunk_size=3).backward()
    whole = [leaf.grad for leaf in (*heads.s, *heads.t)]
    monkeypatch.setattr(head, "PRODUCT_ELEMENTS", elements)
    for leaf in (*heads.s, *heads.t):
        leaf.grad = None
    heads.fused(chunk_size=3).backward()
    for leaf, expected in zip((*heads.s, *heads.t), whole, strict=True):
        torch.testing.assert_close(leaf.grad, expected, rtol=2 * ROUNDING[torch.bfloat16], atol=1e-6)


@pytest.mark.parametrize("size", [2, 4])
def test_chunks_on_a_cpu(size: int) -> None:
    """The student's chunk takes as much memory as its head, and all tokens where that saves the sums."""
    vocab, row = 151_936, 151_936 * size
    for tokens, width in ((512, 256), (2048, 1024), (2048, 2048), (100_000, 1024)):
        weight = width * row
        sums = vocab * width * (4 - size)
        chunk, part = linear.default_chunks(tokens, row, row, "cpu", sums, weight)
        scratch = max(linear.SCRATCH_BYTES, 2 * weight)
        saved = sums if chunk == tokens else 0
        assert (chunk + part) * row <= scratch + saved
        assert chunk >= 0.99 * min(tokens, width) and part * 2 >= chunk


def test_peak_memory_stays_far_below_the_logits() -> None:
    """The scratch buffers of a chunk do not grow with the number of tokens."""
    bytes_per_token = 151_936 * 4 * 2
    for tokens in (1, 63, 512, 2048, 100_000):
        row = bytes_per_token // 2
        chunk, part = linear.default_chunks(tokens, row, row, "cpu")
        assert 1 <= part <= chunk <= max(tokens, 1)
        assert (chunk + part) * bytes_per_token // 2 <= 512 * 2**20
        assert -(-tokens // chunk) * chunk - tokens < chunk  # chunks of nearly equal size
