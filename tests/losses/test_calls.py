"""Test that the losses accept the teachers, views, masks, modes and compilers that users have."""

from __future__ import annotations

import pytest
import torch
from support.closeness import assert_gradient, assert_value
from support.oracle import kd_loss as oracle_loss
from support.targets import Target
from torch import Tensor, nn

import fastkd
from fastkd.divergences import DIVERGENCES
from fastkd.ops import linear as linear_op


@pytest.mark.repeats(20, interpreted=3)
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("inplace", [False, True])
def test_kd_loss_accepts_a_hidden_teacher(
    target: Target, divergence: str, inplace: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The teacher's logits exist only a few rows at a time, and every gradient is right."""
    monkeypatch.setattr(linear_op, "SCRATCH_BYTES", 1)  # the smallest chunks, of 64 rows
    rows = 70 if target.backend != "triton" else 66
    x = torch.randn(2, rows // 2, 90, device=target.device).requires_grad_()
    labels = torch.randint(0, 90, (2, rows // 2), device=target.device)
    labels[1, 3] = -100
    heads = [torch.randn(*size, device=target.device) * 0.5 for size in ((2, rows // 2, 6), (97, 6), (97,))]
    heads = [y.requires_grad_() for y in heads]
    teacher = fastkd.HiddenTeacher(*heads, logit_scale=1.5, logit_softcap=4.0)
    options = {"kd_ratio": 0.6, "divergence": divergence, "temperature": 2.0, "vocab_size": 90}
    loss = fastkd.kd_loss(x * 1.0, teacher, labels, inplace=inplace, **options, **target.options)
    loss.backward()
    exact = [y.detach().double().requires_grad_() for y in (x, *heads)]
    t = 4.0 * torch.tanh((exact[1] @ exact[2].t() + exact[3]) * 1.5 / 4.0)
    expected = oracle_loss(exact[0], t, labels, **options)
    expected.backward()
    assert_value(loss.detach().cpu(), expected.detach().cpu())
    for found, e in zip((x, *heads), exact, strict=True):
        assert_gradient(found.grad, e.grad, factor=4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("view", ["Linear with bias", "view", "flatten", "row", "reshape back", "chunk"])
def test_inplace_on_views(dtype: torch.dtype, view: str) -> None:
    """A model's logits are often a view, because a 3-D Linear returns one or the caller flattens them."""
    shapes = {
        "Linear with bias": lambda z: z,
        "view": lambda z: z.view(-1, 40),
        "flatten": lambda z: z.flatten(0, 1),
        "row": lambda z: z[0],
        "reshape back": lambda z: z.view(-1, 40).view(2, 3, 40),
        "chunk": lambda z: z.chunk(2)[0],
    }
    hidden, teacher = torch.randn(2, 3, 8).to(dtype), torch.randn(6, 40)
    head = nn.Linear(8, 40, bias=view == "Linear with bias").to(dtype)
    gradients = []
    for inplace in (False, True):
        head.zero_grad()
        logits = shapes[view](head(hidden))
        fastkd.kd_loss(logits, teacher[: logits.numel() // 40].view(logits.shape), inplace=inplace).backward()
        gradients.append(head.weight.grad.clone())
    assert torch.equal(*gradients)


def test_inplace_on_a_view_is_refused_where_it_must_be() -> None:
    weight, t = torch.randn(2, 3, 40, requires_grad=True), torch.randn(6, 40)
    with pytest.raises(ValueError, match="leaf that requires grad"):
        fastkd.kd_loss(weight.view(6, 40), t, inplace=True)
    z = weight * 1.0
    loss = fastkd.kd_loss(z.view(6, 40), t, inplace=True)
    with pytest.raises(RuntimeError, match="overwritten"):
        (loss + z.square().sum()).backward()
    z = weight * 1.0
    loss = fastkd.kd_loss(z.view(6, 40), t, inplace=True)
    with torch.no_grad():
        z.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_hidden_states_of_ignored_tokens_may_hold_anything(
    target: Target, reduction: str, dtype: torch.dtype, chunk_size: int | None
) -> None:
    """NaN and infinity in the hidden states of ignored tokens, on both sides, reach no gradient."""
    labels = torch.tensor([1, -100, 5, -100, 7], device=target.device)
    masked = labels == -100
    clean = [torch.randn(*size, device=target.device) for size in ((5, 6), (30, 6), (5, 9), (30, 9))]
    clean = [x.to(dtype) for x in clean]
    found = []
    for garbage in (False, True):
        h, w, th, tw = (x.clone() for x in clean)
        if garbage:
            h[masked], th[masked] = torch.nan, torch.inf
        leaves = [x.requires_grad_() for x in (h, w, th, tw)]
        loss = fastkd.linear_kd_loss(
            h, w, fastkd.HiddenTeacher(th, tw), labels, kd_ratio=0.5, reduction=reduction,
            chunk_size=chunk_size, **target.options,
        )  # fmt: skip
        loss.sum().backward()
        found.append([loss.detach(), *(x.grad for x in leaves)])
    for a, b in zip(*found, strict=True):
        assert torch.isfinite(b).all() and torch.equal(a, b)
    assert (found[1][1][masked] == 0).all()


def test_tensors_made_in_inference_mode() -> None:
    with torch.inference_mode():
        t, labels, teacher = torch.randn(4, 30), torch.randint(0, 30, (4,)), torch.randn(4, 5)
    h, w = torch.randn(4, 8, requires_grad=True), torch.randn(30, 8, requires_grad=True)
    for reduction in ("mean", "none"):
        options = {"kd_ratio": 0.5, "reduction": reduction}
        s = torch.randn(4, 30).half().requires_grad_()
        for loss in (
            fastkd.kd_loss(s, t, labels, **options),
            fastkd.linear_kd_loss(h, w, t, labels, **options),
            fastkd.linear_kd_loss(h, w, fastkd.HiddenTeacher(teacher, torch.randn(30, 5)), labels, **options),
        ):
            loss.sum().backward()
        assert s.grad.isfinite().all() and h.grad.isfinite().all()
    with torch.inference_mode():
        assert not fastkd.kd_loss(t, t, labels, kd_ratio=0.5).requires_grad


def test_a_number_of_items_under_another_default_device() -> None:
    s, t = torch.randn(4, 30), torch.randn(4, 30)
    expected = fastkd.kd_loss(s, t, reduction="sum") / 7
    with torch.device("meta"):
        torch.testing.assert_close(fastkd.kd_loss(s, t, num_items=7), expected)


@pytest.mark.parametrize("what", ["temperature", "kd_ratio", "num_items"])
@pytest.mark.parametrize("fused", [False, True])
def test_numbers_that_change_need_one_graph_more(what: str, fused: bool) -> None:
    """When a number changes between calls, torch.compile compiles one more graph, not one for each value."""
    from fastkd.losses.request import TELLS_CHANGING_NUMBERS

    if not TELLS_CHANGING_NUMBERS and what != "num_items":
        pytest.skip("this torch makes a graph for each value of a number that an operator takes")
    from torch._dynamo.testing import CompileCounterWithBackend

    labels, w = torch.randint(0, 40, (4,)), torch.randn(40, 8)

    def step(x: Tensor, t: Tensor, value: float) -> Tensor:
        options = {"kd_ratio": 0.5, what: value}
        if fused:
            return fastkd.linear_kd_loss(x, w, t, labels, **options)
        return fastkd.kd_loss(x, t, labels, **options)

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(step, backend=counter, fullgraph=True)
    for i in range(6):
        value = 100 + i if what == "num_items" else 0.3 + 0.1 * i
        x, t = torch.randn(4, 8 if fused else 40, requires_grad=True), torch.randn(4, 40)
        loss = compiled(x, t, value)
        loss.backward()
        found, x.grad = x.grad, None
        expected = step(x, t, value)
        expected.backward()
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(found, x.grad)
    assert counter.frame_count <= 2


def test_export_with_a_dynamic_batch() -> None:
    class Loss(nn.Module):
        def forward(self, s: Tensor, t: Tensor, labels: Tensor) -> Tensor:
            return fastkd.kd_loss(s, t, labels, kd_ratio=0.5, temperature=2.0)

    batch = torch.export.Dim("batch", min=2)
    examples = torch.randn(4, 40), torch.randn(4, 40), torch.randint(0, 40, (4,))
    program = torch.export.export(Loss(), examples, dynamic_shapes=({0: batch},) * 3)
    for rows in (2, 9):
        arguments = torch.randn(rows, 40), torch.randn(rows, 40), torch.randint(0, 40, (rows,))
        expected = fastkd.kd_loss(*arguments, kd_ratio=0.5, temperature=2.0)
        torch.testing.assert_close(program.module()(*arguments), expected)
