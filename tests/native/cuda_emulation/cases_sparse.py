"""Cases of the CUDA kernels by themselves: sparse teachers, whose loss and gradients are one launch.

``test_cuda_emulation.py`` runs them on the emulated kernels.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from support.cases import SPARSE_CASES
from support.closeness import during
from support.kernel_calls import DISTANT, DTYPES, KERNEL, POWERS, logits, spec
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

from fastkd.backends.base import Call, SparseRows
from fastkd.backends.native import forced_isa
from fastkd.spec import METRICS

# Divergences whose gradient has the sign of q - p.
SIGNED = ("tvd", "log_acceptance", "kl_tvd")
# Divergences with other parameters than the cases below have.
POWERED = [
    *(("alpha", tail, {"alpha": a}) for a in (-0.7, 1.8) for tail in ("renormalize", "bucket")),
    *(("alpha_beta", "bucket", {"alpha": a, "beta": b}) for a, b in ((0.2, 0.7), (-0.5, 2.0))),
    *(("renyi", "bucket", {"alpha": a}) for a in (0.5, 2.0)),
    *((name, "bucket", {"beta": 0.9}) for name in ("jsd", "skew_forward_kl", "skew_reverse_kl", "kl_tvd")),
]


def run(call: Call) -> list[Tensor]:
    """The results, which must be the same bits with a block's threads in order and at random."""
    original, found = call.student.clone(), []
    for isa in ("emulated_cuda", "emulated_cuda_shuffled"):
        call.student.copy_(original)
        with forced_isa(isa):
            KERNEL.rows(call)
        found.append(sparse_results(call))
    for in_order, shuffled in zip(*found, strict=True):
        torch.testing.assert_close(in_order, shuffled, rtol=0, atol=0, equal_nan=True)
    return found[0]


def compare(call: Call, factor: float = 1.0) -> None:
    expected = exact_results(call)
    assert_near_exact(call, run(call), expected, factor)


@pytest.mark.parametrize(("divergence", "tail"), SPARSE_CASES)
def test_tails(divergence: str, tail: str) -> None:
    temperatures = ((1.0, 1.0),) if tail == "drop" else ((1.0, 1.0), (2.0, 0.7))
    for k, (temperature, of_teacher), metrics in itertools.product(
        (1, 5, 64, 300), temperatures, (False, True)
    ):
        dtype = torch.bfloat16 if k == 5 else torch.float32
        s, entries, labels = with_all_kinds_of_rows(k, dtype)
        arithmetic = spec(700, (divergence, {}), teacher_temperature=of_teacher)
        with during(k=k, temperature=temperature, metrics=metrics):
            compare(sparse_call(s, entries, labels, arithmetic, tail, temperature, metrics=metrics), factor=2)


@pytest.mark.parametrize(("divergence", "tail", "parameters"), POWERED)
def test_parameters(divergence: str, tail: str, parameters: dict[str, float]) -> None:
    s, entries, labels = with_all_kinds_of_rows(9, torch.float32)
    arithmetic = spec(700, (divergence, parameters), teacher_temperature=1.0)
    compare(sparse_call(s, entries, labels, arithmetic, tail), factor=4)


@pytest.mark.parametrize(("divergence", "tail"), FEW)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("in_place", [False, True])
def test_layouts(divergence: str, tail: str, dtype: torch.dtype, in_place: bool) -> None:
    arithmetic = spec(0, (divergence, {}), teacher_temperature=1.0)
    for columns, offset in ((9, 3), (130, 1), (1001, 0), (1000, 2)):
        s = logits(3, columns, dtype, offset)
        vocab = columns - columns // 10
        entries = entries_of(s[..., :vocab], min(vocab, 20))
        s[..., vocab:] = math.nan  # padding
        labels = torch.tensor([0, vocab - 1, int(entries[0][2, 0])])
        for kept in (s, s.transpose(0, 1), s.flip(1).transpose(1, 2).contiguous().transpose(1, 2)):
            given = arithmetic._replace(vocab_size=vocab)
            compare(sparse_call(kept.clone(), entries, labels, given, tail, in_place=in_place), factor=2)


@pytest.mark.parametrize(("divergence", "tail"), FEW)
def test_rows_of_weight_0_and_unwanted_gradients(divergence: str, tail: str) -> None:
    s, entries, labels = with_all_kinds_of_rows(20, torch.float32)
    s[0, 1] = math.nan
    for student, teacher in itertools.product((False, True), repeat=2):
        arithmetic = spec(700, (divergence, {}), teacher_temperature=1.0)
        call = sparse_call(s, entries, labels, arithmetic, tail, metrics=teacher)
        assert isinstance(call.teacher, SparseRows)
        call.loss_scale[1] = call.grad_scale[1] = 0.0
        call.loss_scale[2] = 0.0
        call.grad_student = call.grad_student if student else None
        call.teacher.grad = call.teacher.grad if teacher else None
        compare(call, factor=2)


@pytest.mark.parametrize("tail", ["renormalize", "bucket", "drop"])
def test_wrong_rows(tail: str) -> None:
    """All results of a wrong row are NaN, and those of its neighbours as without it."""
    names = "right, outside, negative, repeated, heavy, absent, label, ignored"
    s, k = logits(8, 300, torch.float32), 40
    s = torch.cat([s, s.new_full((1, 8, 8), 5.0)], -1)  # padding
    indices, logprobs = entries_of(s[..., :300], k)
    logprobs[:, -3:] = -INF
    right = indices.clone(), logprobs.clone()
    labels = torch.tensor([3, 4, 5, 6, 7, 8, 300, -100])
    indices[1, 30], indices[2, 0] = 300, -1
    indices[3, 2] = indices[3, 22]  # as far apart as two entries of a circle can be
    logprobs[4] += 0.5
    indices[5, -3:] = torch.tensor([2**40, int(indices[5, 0]), int(indices[5, 0])])
    indices[7] = -1
    wrong = ["outside", "negative", "repeated", "label"] + ["heavy"] * (tail == "bucket")
    arithmetic = spec(300, teacher_temperature=1.0)
    most = 1 + 1e-3 if tail == "bucket" else INF
    call = sparse_call(s, (indices, logprobs), labels, arithmetic, tail, metrics=True, most_mass=most)
    loss, by_s, by_logprobs, metrics = run(call)
    without = sparse_call(s, (indices, logprobs), labels, arithmetic, tail, metrics=True, most_mass=most)
    bad = torch.tensor([name in wrong for name in names.split(", ")])
    without.loss_scale[bad] = without.grad_scale[bad] = 0.0
    for ours, others in zip((loss, by_s[0], by_logprobs, metrics), run(without), strict=True):
        assert ours[~bad].equal(others.reshape(ours.shape)[~bad])
    assert loss.isnan().equal(bad)
    assert by_s[0, bad, :300].isnan().all() and not by_s[0, :, 300:].any()
    assert by_logprobs[bad, :-3].isnan().all() and not by_logprobs[:, -3:].any()
    assert metrics[bad].isnan().all()
    compare(sparse_call(s, right, labels.clamp(max=299), arithmetic, tail, most_mass=most), factor=2)


@pytest.mark.parametrize(("divergence", "tail"), SPARSE_CASES)
def test_near_models(divergence: str, tail: str) -> None:
    """The student's own probabilities with a small change, and without one."""
    s = logits(2, 400, torch.float32, scale=1.0)
    indices, _ = entries_of(s, 50)
    own = torch.log_softmax(s[0].double(), -1).gather(-1, indices)
    # Where the two sides are equal, rounding decides the sign of a difference.
    for noise in (1e-2, 1e-4) if divergence in SIGNED else (1e-2, 1e-4, 0.0):
        logprobs = (own + noise * torch.randn(own.shape)).float()
        arithmetic = spec(400, (divergence, {}), ce_weight=0.0, z_loss=0.0, teacher_temperature=1.0)
        with during(noise=noise):
            compare(sparse_call(s, (indices, logprobs), None, arithmetic, tail), factor=2)


@pytest.mark.parametrize(("divergence", "tail"), SPARSE_CASES)
def test_confident_models(divergence: str, tail: str) -> None:
    """One entry has nearly all mass, on both sides."""
    s = logits(2, 400, torch.float32, scale=1.0)
    indices, logprobs = entries_of(s, 50)
    s[0].scatter_(-1, indices[:, :1], 16.0)
    logprobs = logprobs - 12
    logprobs[:, 0] = torch.log1p(torch.tensor([-1e-4, -1e-5]))
    labels = indices[:, 0].clone()
    arithmetic = spec(400, (divergence, {}), label_smoothing=0.0, z_loss=0.0, teacher_temperature=1.0)
    # The student's rest is 1 less a mass near 1, which is right to float32's rounding.
    rest = float(1 - torch.softmax(s[0].double(), -1).gather(-1, indices).sum(-1).max())
    factor = max(2.0, 0.1 / rest) if tail == "bucket" else 2.0
    compare(sparse_call(s, (indices, logprobs), labels, arithmetic, tail), factor)


@pytest.mark.parametrize("divergence", [*POWERS, *DISTANT, "forward_kl"])
@pytest.mark.parametrize("tail", ["renormalize", "bucket"])
def test_distant_rows(divergence: str, tail: str) -> None:
    """The student has little probability where the teacher has much, and logits far from 0."""
    apart = {"pearson_chi2": 20.0, "alpha_beta": 30.0}.get(divergence, 60.0)
    s = (torch.randn(1, 3, 300) * 8).round() / 8
    indices, logprobs = entries_of(s, 30, mass=0.9)
    s[0].scatter_(-1, indices, s[0].gather(-1, indices) - apart)
    s[0, 1] += 2.0**16
    for metrics in (False, True):
        arithmetic = spec(300, (divergence, {}), teacher_temperature=1.0, ce_weight=0.0, z_loss=0.0)
        call = sparse_call(s, (indices, logprobs), None, arithmetic, tail, metrics=metrics)
        found, expected = run(call), exact_results(call)
        for ours, exact in zip(found, expected, strict=True):
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


def test_more_entries_than_a_block_holds() -> None:
    s = logits(1, 1500, torch.float32)
    for k in (1024, 1025):
        call = sparse_call(s, entries_of(s, k), None, spec(1500, ce_weight=0.0), "bucket")
        takes = KERNEL.takes_sparse(torch.device("cuda"), k, False)
        assert takes == (k == 1024) and not KERNEL.takes_sparse(torch.device("cuda"), k, True)
        if takes:
            compare(call, factor=2)
        else:
            with pytest.raises(RuntimeError, match="entries"):
                KERNEL.rows(call)


def test_the_first_of_equal_entries_agrees() -> None:
    s = torch.zeros(1, 3, 100)
    s[0, :, 40] = 1.0
    indices, logprobs = torch.tensor([[40, 50], [50, 40], [7, 40]]), torch.tensor([-1.0, -1.0]).expand(3, 2)
    logprobs = logprobs.clone()
    logprobs[2, 0] = -INF
    call = sparse_call(s, (indices, logprobs), None, spec(100), "bucket", metrics=True)
    metrics = run(call)[-1]
    assert metrics[:, METRICS.index("agreement")].tolist() == [1.0, 0.0, 1.0]
