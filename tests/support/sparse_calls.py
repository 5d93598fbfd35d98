"""Calls of a kernel by itself with a sparse teacher, and their comparison with float64."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from support.closeness import assert_gradient, assert_value, enlargement
from support.kernel_calls import call_of, logits
from torch import Tensor

from fastkd.backends.base import Call, SparseRows
from fastkd.backends.registry import REGISTRY
from fastkd.spec import LossSpec

INF = math.inf
FEW = [("forward_kl", "renormalize"), ("jsd", "renormalize"), ("tvd", "bucket"), ("forward_kl", "drop")]


def entries_of(s: Tensor, k: int, mass: float = 0.8, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    """Different columns for each row of ``(1, rows, V)`` logits, and log-probabilities of this mass."""
    rows, columns = s.shape[1:]
    indices = torch.rand(rows, columns).argsort(-1)[:, :k].contiguous()
    return indices, torch.log_softmax(torch.randn(rows, k) * scale, -1) + math.log(mass)


def sparse_call(
    s: Tensor,
    entries: tuple[Tensor, Tensor],
    labels: Tensor | None,
    arithmetic: LossSpec,
    tail: str,
    temperature: float = 1.0,
    in_place: bool = False,
    metrics: bool = False,
    most_mass: float = INF,
) -> Call:
    """A call whose outputs are filled with 7, which shows what the kernel does not write.

    ``temperature`` is the student's, which for a bucket is that of its classes.
    """
    call = call_of(s, s, labels, arithmetic._replace(temperature=temperature), in_place, metrics)
    indices, logprobs = entries
    teacher = SparseRows(indices, logprobs.to(call.row_loss.dtype), tail, most_mass=most_mass)
    teacher.grad = torch.full_like(teacher.logprobs, 7.0)
    if tail == "bucket":
        teacher.class_temperature = temperature
        call.spec = call.spec._replace(temperature=1.0)
    call.teacher, call.grad_teacher = teacher, None
    return call


def sparse_results(call: Call) -> list[Tensor]:
    assert isinstance(call.teacher, SparseRows)
    found = [call.row_loss, call.grad_student, call.teacher.grad, call.metrics]
    return [x.clone() for x in found if x is not None]


def exact_results(call: Call) -> list[Tensor]:
    """The results of the same call in float64 from the reference backend."""
    assert isinstance(call.teacher, SparseRows)
    teacher = replace(call.teacher, logprobs=call.teacher.logprobs.double())
    teacher.grad = None if call.teacher.grad is None else torch.empty_like(teacher.logprobs)
    exact = Call(
        call.student.double(),
        teacher,
        call.labels,
        call.loss_scale.double(),
        call.grad_scale.double(),
        call.spec,
        call.row_loss.double(),
        None if call.grad_student is None else torch.empty_like(call.student, dtype=torch.float64),
        None,
        None if call.metrics is None else call.metrics.double(),
    )
    REGISTRY["reference"].rows(exact)
    return sparse_results(exact)


def assert_near_exact(call: Call, found: list[Tensor], expected: list[Tensor], factor: float = 1.0) -> None:
    """Compare the results of a kernel with those of :func:`exact_results`."""
    factor *= enlargement(call.spec._asdict())
    assert_value(found[0], expected[0], atol=2e-6 * factor)
    for ours, exact in zip(found[1:], expected[1:], strict=True):
        if call.metrics is not None and ours.shape == call.metrics.shape:
            torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-5 * factor, equal_nan=True)
        else:
            of_entries = isinstance(call.teacher, SparseRows) and ours.shape == call.teacher.logprobs.shape
            assert_gradient(ours, exact, factor=(4 if of_entries else 2) * factor)


def with_all_kinds_of_rows(
    k: int, dtype: torch.dtype, columns: int = 700
) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
    """Rows whose label is an entry or not, or ignored; with absent entries; and without entries."""
    s = logits(6, columns, dtype, scale=2.0)
    indices, logprobs = entries_of(s, k)
    labels = torch.tensor([int(indices[0, 0]), int(indices[1, -1]), 3, -100, 699, 0])
    logprobs[1, k // 2 + 1 :] = -INF
    indices[1, k // 2 + 1 :] = 10**12  # any number will do
    logprobs[2, 1:] = -INF
    indices[2, 1:] = indices[2, 0]
    logprobs[3], indices[3] = math.nan, -7
    logprobs[5] = -INF
    return s, (indices, logprobs), labels
