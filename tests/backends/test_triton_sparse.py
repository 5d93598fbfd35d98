"""Test Triton's kernel for sparse teachers by itself: kinds of rows, wrong rows, and numbers of entries.

``tests/losses/test_sparse.py`` tests it through the losses.
"""

from __future__ import annotations

import math

import pytest
import torch
from support.cases import SPARSE_CASES
from support.closeness import during, enlargement
from support.kernel_calls import DISTANT, POWERS, logits, spec
from support.sparse_calls import (
    FEW,
    INF,
    assert_near_exact,
    entries_of,
    exact_results,
    sparse_call,
    sparse_results,
    with_all_kinds_of_rows,
)
from torch import Tensor

from fastkd.backends.base import Call
from fastkd.backends.registry import REGISTRY
from fastkd.spec import METRICS

launch_sparse = pytest.importorskip("fastkd.backends.triton.launch_sparse", exc_type=ImportError)
pytestmark = pytest.mark.triton_interpret

KERNEL = REGISTRY["triton"]


def run(call: Call) -> list[Tensor]:
    KERNEL.rows(call)
    return sparse_results(call)


def compare(call: Call, factor: float = 1.0) -> None:
    expected = exact_results(call)
    assert_near_exact(call, run(call), expected, factor)


@pytest.mark.parametrize(
    ("divergence", "tail"), [*FEW, *(pytest.param(*x, marks=pytest.mark.slow) for x in SPARSE_CASES)]
)
def test_kinds_of_rows(divergence: str, tail: str) -> None:
    """The teacher's entries include the label or not, or are absent in part or all of them."""
    temperatures = ((1.0, 1.0),) if tail == "drop" else ((1.0, 1.0), (2.0, 0.7))
    for k, dtype, (temperature, of_teacher) in zip(
        (5, 63), (torch.bfloat16, torch.float32), (temperatures * 2)[:2], strict=True
    ):
        s, entries, labels = with_all_kinds_of_rows(k, dtype)
        arithmetic = spec(700, (divergence, {}), teacher_temperature=of_teacher)
        # A power of p / q is large, and its rounding too.
        factor = 8 if divergence in POWERS else 2
        with during(k=k):
            compare(sparse_call(s, entries, labels, arithmetic, tail, temperature, metrics=True), factor)


@pytest.mark.parametrize("k", [1, 2, 511])
def test_numbers_of_entries(k: int) -> None:
    s = logits(2, 600, torch.float32)
    arithmetic = spec(600, ("jsd", {}), teacher_temperature=1.0)
    compare(sparse_call(s, entries_of(s, k), None, arithmetic, "bucket", in_place=True), factor=2)


@pytest.mark.parametrize("tail", ["renormalize", "bucket", "drop"])
def test_wrong_rows(tail: str) -> None:
    """All results of a wrong row are NaN, and those of its neighbours as without it."""
    names = ["right", "outside", "negative", "repeated", "heavy", "absent", "label", "ignored"]
    s, k = logits(8, 300, torch.float32), 40
    s = torch.cat([s, s.new_full((1, 8, 8), 5.0)], -1)  # padding
    indices, logprobs = entries_of(s[..., :300], k)
    logprobs[:, -3:] = -INF
    labels = torch.tensor([3, 4, 5, 6, 7, 8, 300, -100])
    indices[1, 30], indices[2, 0] = 300, -1
    indices[3, 2] = indices[3, 22]
    logprobs[4] += 0.5
    indices[5, -3:] = torch.tensor([2**40, int(indices[5, 0]), int(indices[5, 0])])
    indices[7] = -1
    wrong = ["outside", "negative", "repeated", "label"] + ["heavy"] * (tail == "bucket")
    bad = torch.tensor([name in wrong for name in names])
    most = 1 + 1e-3 if tail == "bucket" else INF
    arithmetic = spec(300, teacher_temperature=1.0)

    def call() -> Call:
        return sparse_call(s, (indices, logprobs), labels, arithmetic, tail, metrics=True, most_mass=most)

    found, without = call(), call()
    without.loss_scale[bad] = without.grad_scale[bad] = 0.0
    loss, by_s, by_logprobs, metrics = run(found)
    for ours, others in zip((loss, by_s[0], by_logprobs, metrics), run(without), strict=True):
        assert ours[~bad].equal(others.reshape(ours.shape)[~bad])
    assert loss.isnan().equal(bad)
    assert by_s[0, bad, :300].isnan().all() and not by_s[0, :, 300:].any()
    assert by_logprobs[bad, :-3].isnan().all() and not by_logprobs[:, -3:].any()
    assert metrics[bad].isnan().all()


@pytest.mark.slow
@pytest.mark.parametrize(("divergence", "tail"), SPARSE_CASES)
def test_confident_models(divergence: str, tail: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One entry has nearly all mass, on both sides. Numbers near 1 lose no more digits than in torch."""
    s = logits(2, 400, torch.float32, scale=1.0)
    indices, logprobs = entries_of(s, 50)
    s[0].scatter_(-1, indices[:, :1], 16.0)
    logprobs = logprobs - 12
    logprobs[:, 0] = torch.log1p(torch.tensor([-1e-4, -1e-5]))
    arithmetic = spec(400, (divergence, {}), label_smoothing=0.0, z_loss=0.0, teacher_temperature=1.0)

    def call() -> Call:
        return sparse_call(s, (indices, logprobs), indices[:, 0].clone(), arithmetic, tail)

    expected, found = exact_results(call()), run(call())
    monkeypatch.setattr(KERNEL, "takes_sparse", lambda *_: False)
    rounding = 2e-6 * enlargement(arithmetic._asdict())
    for ours, torchs, exact in zip(found, run(call()), expected, strict=True):
        assert (ours.double() - exact).norm() <= 3 * (torchs.double() - exact).norm() + rounding


@pytest.mark.slow
@pytest.mark.parametrize("divergence", [*POWERS, *DISTANT, "forward_kl"])
@pytest.mark.parametrize("tail", ["renormalize", "bucket"])
def test_distant_rows(divergence: str, tail: str) -> None:
    """The student has little probability where the teacher has much, and logits far from 0."""
    apart = {"pearson_chi2": 20.0, "alpha_beta": 30.0}.get(divergence, 60.0)
    s = (torch.randn(1, 3, 300) * 8).round() / 8
    indices, logprobs = entries_of(s, 30, mass=0.9)
    s[0].scatter_(-1, indices, s[0].gather(-1, indices) - apart)
    s[0, 1] += 2.0**16
    arithmetic = spec(300, (divergence, {}), teacher_temperature=1.0, ce_weight=0.0, z_loss=0.0)
    call = sparse_call(s, (indices, logprobs), None, arithmetic, tail, metrics=True)
    for ours, exact in zip(run(call), exact_results(call), strict=True):
        assert ours.isfinite().equal(exact.isfinite())
        kept = exact.isfinite()
        assert (ours.double() - exact)[kept].norm() <= 2e-5 * exact[kept].norm() + 1e-5


@pytest.mark.parametrize(("divergence", "tail"), FEW)
def test_numbers_that_are_not_finite(divergence: str, tail: str) -> None:
    """NaN spoils its own row alone, and so does an entry that the student rules out."""
    s, k = logits(4, 200, torch.float32), 12
    entries = entries_of(s, k)
    s[0, 0, 50] = math.nan
    entries[1][1, 3] = math.nan
    s[0, 2, int(entries[0][2, 0])] = -INF
    arithmetic = spec(200, (divergence, {}), label_smoothing=0.0, teacher_temperature=1.0)
    call = sparse_call(s, entries, torch.tensor([1, 2, 3, 4]), arithmetic, tail)
    loss, by_s, by_logprobs = run(call)
    assert loss[:2].isnan().all() and not loss[2].isnan() and loss[3].isfinite()
    assert loss[2].isinf() == (divergence == "forward_kl")
    assert by_s[0, 3].isfinite().all() and by_logprobs[3].isfinite().all()


def test_the_first_of_equal_entries_agrees() -> None:
    s = torch.zeros(1, 3, 100)
    s[0, :, 40] = 1.0
    indices, logprobs = torch.tensor([[40, 50], [50, 40], [7, 40]]), torch.tensor([-1.0, -1.0]).expand(3, 2)
    logprobs = logprobs.clone()
    logprobs[2, 0] = -INF
    call = sparse_call(s, (indices, logprobs), None, spec(100), "bucket", metrics=True)
    assert run(call)[-1][:, METRICS.index("agreement")].tolist() == [1.0, 0.0, 1.0]


def test_rows_of_entries_that_one_launch_takes() -> None:
    device = torch.device("cuda")
    assert KERNEL.takes_sparse(device, launch_sparse.MAX_ENTRIES, False)
    assert not KERNEL.takes_sparse(device, launch_sparse.MAX_ENTRIES + 1, False)
    assert not KERNEL.takes_sparse(device, 8, True)
