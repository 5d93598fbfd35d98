"""Test tensors of more than 2**31 elements: offsets of every tensor that can be so large, in every loss.

Nearly all rows have weight 0, so that the rows that count are at the end. On the CPU the same tests run with
small tensors, to show that the tests themselves are right (test_cpu.py has a large tensor).
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from support.closeness import assert_gradient, assert_value
from support.oracle import Sparse, kd_loss as oracle_loss, reference_gradients
from support.targets import GPU_TARGETS, Target
from torch import Tensor

import fastkd

# Each test needs gigabytes, so pytest-xdist must run them one after the other.
pytestmark = pytest.mark.huge
LAST = slice(-2, None)


@pytest.fixture(params=[p for p in GPU_TARGETS if p.values[0].backend != "reference"])
def place(request: pytest.FixtureRequest) -> Iterator[Target]:
    with request.param.active():
        yield request.param
    if request.param.device == "cuda":
        torch.cuda.empty_cache()


@pytest.fixture(autouse=True)
def as_allocated() -> None:
    """Do not fill fresh tensors with NaN as the other tests do: it would double the memory traffic and reveal
    nothing more."""
    torch.utils.deterministic.fill_uninitialized_memory = False


def size(place: Target) -> tuple[int, int]:
    """Rows and columns; their product is more than 2**31 on a GPU."""
    return (2**15 + 1, 2**16) if place.device == "cuda" else (33, 64)


def weights(place: Target, rows: int) -> Tensor:
    """Token weights: 1 for the last two rows, 0 for all others."""
    found = torch.zeros(rows, device=place.device)
    found[LAST] = 1.0
    return found


def logits(place: Target, rows: int, columns: int) -> Tensor:
    x = torch.zeros(rows, columns, dtype=torch.bfloat16, device=place.device)
    x[LAST] = torch.randn(2, columns).to(torch.bfloat16).to(place.device)
    return x


def check(loss: Tensor, grad: Tensor, expected: Tensor, by: Tensor) -> None:
    assert_value(loss.detach().cpu(), expected.cpu(), rtol=1e-5, atol=1e-5)
    assert_gradient(grad[LAST], by, factor=2)
    assert not grad[:-2].any()


@pytest.mark.parametrize("divergence", ["forward_kl", "jsd", "decoupled"])
def test_15_logits(place: Target, divergence: str) -> None:
    """Offsets in both sides' logits and in the student's gradient, with two sweeps and with three."""
    rows, columns = size(place)
    s, t = logits(place, rows, columns).requires_grad_(), logits(place, rows, columns)
    labels = torch.full((rows,), columns - 1, device=place.device)
    options = {"reduction": "sum", "kd_ratio": 0.5, "divergence": divergence}
    loss = fastkd.kd_loss(s, t, labels, token_weights=weights(place, rows), **options, **place.options)
    (3.0 * loss).backward()
    expected, by_s, _ = reference_gradients(s[LAST].detach(), t[LAST], labels[LAST], **options)
    check(loss, s.grad, expected, 3.0 * by_s)


def test_15_metrics_and_a_teachers_gradient(place: Target) -> None:
    rows, columns = size(place)
    s, t = logits(place, rows, columns), logits(place, rows, columns).requires_grad_()
    loss, found = fastkd.kd_loss(
        s, t, token_weights=weights(place, rows), reduction="sum", return_metrics=True, **place.options
    )
    loss.backward()
    expected, _, by_t = reference_gradients(s[LAST], t[LAST].detach(), reduction="sum")
    check(loss, t.grad, expected, by_t)
    assert found.num_valid.item() == 2 and abs(found.kd.item() - expected.item() / 2) < 1e-4


def test_15_in_place(place: Target) -> None:
    rows, columns = size(place)
    base, t = logits(place, rows, columns), logits(place, 2, columns)
    kept = base[LAST].clone()
    anchor = torch.zeros((), device=place.device, dtype=torch.bfloat16, requires_grad=True)
    s = base.add_(anchor)  # makes a non-leaf without a second tensor of this size
    teacher = t[:1].expand(rows, columns)
    loss = fastkd.kd_loss(
        s, teacher, token_weights=weights(place, rows), reduction="sum", inplace=True, **place.options
    )
    expected, by_s, _ = reference_gradients(kept, t[:1].expand(2, columns), reduction="sum")
    check(loss, s.detach(), expected, by_s)
    loss.backward()
    assert anchor.grad is not None and torch.isfinite(anchor.grad)


def test_15_sparse_teacher(place: Target) -> None:
    rows, columns = size(place)
    s = logits(place, rows, columns).requires_grad_()
    logprobs, indices = torch.log_softmax(torch.randn(2, columns), -1).topk(8)
    all_indices = torch.zeros(rows, 8, dtype=torch.int64, device=place.device)
    all_logprobs = torch.full((rows, 8), -float("inf"), device=place.device)
    all_indices[LAST], all_logprobs[LAST] = indices.to(place.device), logprobs.to(place.device)
    teacher = fastkd.SparseTeacher(all_indices, all_logprobs, "bucket")
    loss = fastkd.kd_loss(s, teacher, token_weights=weights(place, rows), reduction="sum", **place.options)
    loss.backward()
    expected, by_s, _ = reference_gradients(
        s[LAST].detach().cpu(), Sparse(indices, logprobs, "bucket"), reduction="sum"
    )
    check(loss, s.grad, expected, by_s)


@pytest.mark.parametrize("teacher", ["hidden", "logits"])
def test_15_linear(place: Target, teacher: str) -> None:
    """Either one chunk of all rows, whose logits exceed 2**31 elements, or dense teacher logits of that size
    with small chunks."""
    rows, columns = size(place)
    chunk_size = rows if teacher == "hidden" else 64
    h = torch.randn(rows, 8, dtype=torch.bfloat16).to(place.device).requires_grad_()
    w = torch.randn(columns, 8, dtype=torch.bfloat16).to(place.device).requires_grad_()
    wide = torch.randn(rows, 16, dtype=torch.bfloat16).to(place.device)
    head = (torch.randn(columns, 16) * 0.2).to(torch.bfloat16).to(place.device)
    given = fastkd.HiddenTeacher(wide, head) if teacher == "hidden" else logits(place, rows, columns)
    loss = fastkd.linear_kd_loss(
        h, w, given, token_weights=weights(place, rows), reduction="sum", chunk_size=chunk_size,
        **place.options,
    )  # fmt: skip
    loss.backward()
    h64, w64 = h[LAST].detach().double().requires_grad_(), w.detach().double().requires_grad_()
    t64 = wide[LAST].double() @ head.double().t() if teacher == "hidden" else given[LAST].double()
    exact = oracle_loss(h64 @ w64.t(), t64, reduction="sum")
    exact.backward()
    # With a 16-bit head the logits themselves are rounded to 16 bits.
    assert_value(loss.detach().cpu(), exact.detach().cpu(), rtol=2e-2, atol=2e-2)
    assert_gradient(w.grad, w64.grad, factor=8)
    assert_gradient(h.grad[LAST], h64.grad, factor=8)
    assert not h.grad[:-2].any()


def test_15_upstream_gradients(place: Target) -> None:
    """Offsets where each row's stored gradient is multiplied by its upstream gradient, in place and into a
    new tensor."""
    rows, columns = size(place)
    s, t = logits(place, rows, columns).requires_grad_(), logits(place, 2, columns)[:1].expand(rows, columns)
    loss = fastkd.kd_loss(s, t, token_weights=weights(place, rows), reduction="none", **place.options)
    upstream = torch.full((rows,), 0.5, device=place.device)
    (kept,) = torch.autograd.grad(loss, s, upstream, retain_graph=True)
    ends = kept[LAST].clone(), kept[:2].clone()
    del kept
    (found,) = torch.autograd.grad(loss, s, upstream)
    expected, by_s, _ = reference_gradients(s[LAST].detach(), t[LAST], reduction="sum")
    check(loss.sum(), found, expected, 0.5 * by_s)
    assert torch.equal(ends[0], found[LAST]) and torch.equal(ends[1], found[:2])
