"""The kernel for the hub computes the same as fastkd, bit for bit on the same backend."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from support.cases import SPARSE_CASES
from torch import Tensor

import fastkd
from fastkd.divergences import DIVERGENCES

BACKENDS = pytest.mark.parametrize(
    "backend", ["reference", pytest.param("triton", marks=pytest.mark.triton_interpret)]
)
ROWS, VOCAB, HIDDEN, ENTRIES = 4, 37, 8, 5
Loss = Callable[[Any, list[Tensor]], Tensor]


def tensors(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(*shape).to(dtype).requires_grad_() for shape in shapes]


def labels() -> Tensor:
    return torch.tensor([3, -100, 0, VOCAB - 1])


def results(library: Any, loss: Loss, inputs: list[Tensor]) -> list[Tensor]:
    """The loss and the gradient of every input, with an upstream gradient that is not 1."""
    value = loss(library, inputs)
    upstream = torch.linspace(0.5, 2.0, value.numel(), dtype=value.dtype).view(value.shape)
    return [value.detach(), *torch.autograd.grad(value, inputs, upstream)]


def assert_same(kernel: ModuleType, loss: Loss, inputs: list[Tensor]) -> None:
    """Check that both libraries give the same bits, and gradients that are not 0."""
    found, expected = results(kernel, loss, inputs), results(fastkd, loss, inputs)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        assert torch.isfinite(ours).all() and ours.any()
        assert torch.equal(ours, theirs)


@BACKENDS
@pytest.mark.repeats(interpreted=4)
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_every_divergence(kernel: ModuleType, backend: str, divergence: str) -> None:
    def loss(library: Any, inputs: list[Tensor]) -> Tensor:
        options = {"divergence": divergence, "temperature": 2.0, "kd_ratio": 0.7, "label_smoothing": 0.1}
        found: Tensor = library.kd_loss(*inputs, labels(), **options, backend=backend)
        return found

    assert_same(kernel, loss, tensors((ROWS, VOCAB), (ROWS, VOCAB)))


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_fastkd_with_its_best_backend_agrees(kernel: ModuleType, divergence: str) -> None:
    """The hub's reference and fastkd's compiled kernels compute the same loss and gradients."""

    def loss(library: Any, inputs: list[Tensor]) -> Tensor:
        found: Tensor = library.kd_loss(*inputs, labels(), divergence=divergence, temperature=2.0)
        return found

    inputs = tensors((ROWS, VOCAB), (ROWS, VOCAB))
    for ours, theirs in zip(results(kernel, loss, inputs), results(fastkd, loss, inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "dtypes", [("bfloat16", "bfloat16"), ("float16", "float32"), ("float64", "bfloat16")], ids="-".join
)
@pytest.mark.parametrize("divergence", ["forward_kl", "jsd"])
def test_dtypes(kernel: ModuleType, divergence: str, dtypes: tuple[str, str]) -> None:
    def loss(library: Any, inputs: list[Tensor]) -> Tensor:
        found: Tensor = library.kd_loss(*inputs, labels(), divergence=divergence, backend="reference")
        return found

    pair = [tensors((ROWS, VOCAB), dtype=getattr(torch, name))[0] for name in dtypes]
    assert_same(kernel, loss, pair)


@pytest.mark.triton_interpret
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_dtypes_in_triton(kernel: ModuleType, dtype: str) -> None:
    def loss(library: Any, inputs: list[Tensor]) -> Tensor:
        found: Tensor = library.kd_loss(*inputs, labels(), backend="triton")
        return found

    assert_same(kernel, loss, tensors((ROWS, VOCAB), (ROWS, VOCAB), dtype=getattr(torch, dtype)))


@BACKENDS
def test_without_a_reduction_and_with_metrics(kernel: ModuleType, backend: str) -> None:
    def loss(library: Any, inputs: list[Tensor]) -> Tensor:
        options = {"kd_ratio": 0.5, "reduction": "none", "return_metrics": True}
        found, metrics = library.kd_loss(*inputs, labels(), **options, backend=backend)
        assert isinstance(metrics, library.KDMetrics)
        seen.append(torch.stack(list(metrics)))
        of_rows: Tensor = found
        return of_rows

    seen: list[Tensor] = []
    assert_same(kernel, loss, tensors((ROWS, VOCAB), (ROWS, VOCAB)))
    assert torch.equal(*seen) and torch.isfinite(seen[0]).all()


@BACKENDS
@pytest.mark.repeats(8, interpreted=2)
@pytest.mark.parametrize(("divergence", "tail"), SPARSE_CASES)
def test_sparse_teachers(kernel: ModuleType, backend: str, divergence: str, tail: str) -> None:
    indices = torch.stack([torch.randperm(VOCAB)[:ENTRIES] for _ in range(ROWS)])

    def loss(library: Any, inputs: list[Tensor]) -> Tensor:
        student, scores = inputs
        teacher = library.SparseTeacher(indices, torch.log_softmax(scores, -1)[:, :ENTRIES], tail=tail)
        found: Tensor = library.kd_loss(student, teacher, divergence=divergence, backend=backend)
        return found

    assert_same(kernel, loss, tensors((ROWS, VOCAB), (ROWS, VOCAB)))


@BACKENDS
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_hidden_states(kernel: ModuleType, backend: str, chunk_size: int | None) -> None:
    def loss(library: Any, inputs: list[Tensor]) -> Tensor:
        hidden, weight, *of_teacher = inputs
        options = {"kd_ratio": 0.5, "divergence": "jsd", "chunk_size": chunk_size, "logit_softcap": 30.0}
        teacher = library.HiddenTeacher(*of_teacher)
        found: Tensor = library.linear_kd_loss(hidden, weight, teacher, labels(), **options, backend=backend)
        return found

    shapes = ((ROWS, HIDDEN), (VOCAB, HIDDEN), (ROWS, 2 * HIDDEN), (VOCAB, 2 * HIDDEN))
    assert_same(kernel, loss, tensors(*shapes))


def test_losses_of_samples(kernel: ModuleType) -> None:
    teacher = -torch.rand(ROWS)

    def loss(library: Any, inputs: list[Tensor]) -> Tensor:
        logprobs = library.token_logprobs(*inputs, labels().clamp(0), backend="reference")
        found: Tensor = library.sampled_kd_loss(logprobs, teacher)
        return found

    assert_same(kernel, loss, tensors((ROWS, HIDDEN), (VOCAB, HIDDEN)))


def test_under_torch_compile(kernel: ModuleType) -> None:
    """One graph without breaks holds the kernel's own op, and gives what the call alone gives."""

    def loss(library: Any, inputs: list[Tensor]) -> Tensor:
        def call(student: Tensor, teacher: Tensor) -> Tensor:
            found: Tensor = library.kd_loss(student, teacher, temperature=2.0, backend="reference")
            return found

        found: Tensor = torch.compile(call, fullgraph=True, backend="aot_eager")(*inputs)
        return found

    def plain(library: Any, inputs: list[Tensor]) -> Tensor:
        found: Tensor = library.kd_loss(*inputs, temperature=2.0, backend="reference")
        return found

    inputs = tensors((ROWS, VOCAB), (ROWS, VOCAB))
    torch.testing.assert_close(results(kernel, loss, inputs), results(fastkd, plain, inputs))


def test_modules(kernel: ModuleType) -> None:
    def dense(library: Any, inputs: list[Tensor]) -> Tensor:
        found: Tensor = library.KDLoss(divergence="tvd", backend="reference")(*inputs)
        return found

    assert_same(kernel, dense, tensors((ROWS, VOCAB), (ROWS, VOCAB)))


def test_errors(kernel: ModuleType) -> None:
    """Errors are those of fastkd; the compiled backend is reported as missing, with the remedy."""
    student, teacher = tensors((ROWS, VOCAB), (ROWS, VOCAB))
    with pytest.raises(ValueError, match="did you mean 'jsd'"):
        kernel.kd_loss(student, teacher, divergence="jds")
    with pytest.raises(kernel.BackendUnavailable, match="pip install fastkd"):
        kernel.kd_loss(student, teacher, backend="native")
    reported = kernel.available_backends()
    assert reported["reference:cpu"] == "available" and "pip install fastkd" in reported["native:cpu"]
