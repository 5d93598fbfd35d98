"""Test what a call does around its kernels on a GPU, without a GPU (device_watch.py explains how).

The host never waits for the device or copies to it, all tensors are on the inputs' device, every kernel is
launched on that device and its current stream, and no tensor other than the gradients is as large as the
logits. ``test_gpu.py`` tests the same on a GPU.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from support.cases import SPARSE_CASES
from support.closeness import during
from support.device_watch import Refused, Watch, watched
from support.gpu_cases import WAYS, Case
from torch import Tensor

import fastkd
from fastkd.backends import shards as sharding
from fastkd.divergences import DIVERGENCES
from fastkd.ops import tokens as tokens_module

DEVICE = "cuda:1"
# The heads are narrower than the number of tokens, so that the logits are the largest tensors.
TOKENS, VOCAB, K, WIDTH, TEACHER_WIDTH = (2, 5), 1000, 8, 4, 6


class Inputs:
    """Every tensor that a call may receive, on ``DEVICE``, without data."""

    def __init__(self, watch: Watch, dtype: torch.dtype = torch.bfloat16, vocab: int = VOCAB) -> None:
        def empty(*shape: int, dtype: torch.dtype = dtype, grad: bool = False) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=DEVICE, requires_grad=grad)

        self.student, self.logits = empty(*TOKENS, vocab, grad=True), empty(*TOKENS, vocab)
        self.shifted = empty(TOKENS[0], TOKENS[1] + 1, vocab)[:, :-1]
        self.labels = empty(*TOKENS, dtype=torch.int64)
        self.weights, self.count = empty(*TOKENS, dtype=torch.float32), empty(dtype=torch.int64)
        self.indices, self.logprobs = empty(*TOKENS, K, dtype=torch.int64), empty(*TOKENS, K)
        self.hidden, self.weight, self.bias = (
            empty(*shape, grad=True) for shape in ((*TOKENS, WIDTH), (vocab, WIDTH), (vocab,))
        )
        self.teacher = fastkd.HiddenTeacher(
            empty(*TOKENS, TEACHER_WIDTH), empty(vocab, TEACHER_WIDTH), empty(vocab), logit_softcap=30.0
        )
        tensors = [x for x in (*vars(self).values(), *vars(self.teacher).values()) if isinstance(x, Tensor)]
        watch.given(*tensors)
        watch.seen.made.clear()
        watch.seen.peak = 0

    def sparse(self, tail: str, grad: bool = False) -> fastkd.SparseTeacher:
        return fastkd.SparseTeacher(self.indices, self.logprobs.requires_grad_(grad), tail)


def backward(watch: Watch, loss: Any, reduction: str) -> None:
    """Check the shape of a call's loss, one number or one for each row, and run its backward."""
    loss = loss[0] if isinstance(loss, tuple) else loss
    assert loss.device == torch.device(DEVICE)
    shape = (10,) if reduction == "none" else ()
    watch.backward(torch.empty(shape, device=DEVICE, dtype=loss.dtype), None, None)


def needs(backend: str) -> None:
    """Skip the test where this backend's kernels cannot be imported."""
    if backend == "triton":
        pytest.importorskip("fastkd.backends.triton.launch", exc_type=ImportError)


def dense(watch: Watch, teacher: Any, given: Inputs, **options: Any) -> None:
    loss = fastkd.kd_loss(given.student, teacher, given.labels, **options)
    backward(watch, loss, options.get("reduction", "mean"))


def linear(watch: Watch, teacher: Any, given: Inputs, **options: Any) -> None:
    options = {"student_bias": given.bias, "chunk_size": 5, **options}
    loss = fastkd.linear_kd_loss(given.hidden, given.weight, teacher, given.labels, **options)
    backward(watch, loss, options.get("reduction", "mean"))


def launches_are_placed(watch: Watch, at_least: int = 2) -> None:
    assert len(watch.seen.launches) >= at_least
    assert set(watch.seen.launches) == {(1, 1001)}, "a launch on another device or stream"


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum", "batchmean", "none"])
def test_logits(reduction: str, inplace: bool) -> None:
    for weighted in (False, True):
        with watched(DEVICE) as watch, during(weighted=weighted):
            given = Inputs(watch)
            counts = (None, 10, given.count, torch.tensor(10)) if reduction == "mean" else (None,)
            for items in counts:
                dense(
                    watch, given.logits, given, kd_ratio=0.5, label_smoothing=0.1, reduction=reduction,
                    token_weights=given.weights if weighted else None, num_items=items, inplace=inplace,
                    return_metrics=not weighted,
                )  # fmt: skip
            launches_are_placed(watch)
            gradient = given.student.untyped_storage().nbytes()
            assert watch.seen.made.count(gradient) == (0 if inplace else len(counts))
            assert max((x for x in watch.seen.made if x != gradient), default=0) < gradient // 16


@pytest.mark.parametrize("reduction", ["mean", "sum", "batchmean", "none"])
@pytest.mark.parametrize(
    ("backend", "dtype"),
    [
        *(("native", dtype) for dtype in (torch.float32, torch.bfloat16)),
        *(("triton", dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16)),
    ],
    ids=str,
)
def test_launches(reduction: str, backend: str, dtype: torch.dtype) -> None:
    """A call takes three launches (weights, loss, sum) and its backward one, whatever the options.

    Each launch of a tiny kernel costs some two microseconds, which for few tokens is as much as the loss.
    The kernel of the sum also has the means of the metrics.
    """
    needs(backend)
    with watched(DEVICE) as watch:
        given = Inputs(watch, dtype)
        options: list[dict[str, Any]] = [{}, {"label_smoothing": 0.1, "z_loss": 1e-3}, {"inplace": True}]
        options += [{"token_weights": w} for w in (given.weights, given.weights.bfloat16(), given.labels > 0)]
        if reduction == "mean":
            options += [{"num_items": n} for n in (7, given.count, torch.tensor(7))]
        options.append({"return_metrics": True, "token_weights": given.weights})
        for more in options:
            for labels, ratio in ((given.labels, 0.5), (None, 1.0)):
                watch.seen.launches.clear()
                watch.seen.small.clear()
                arguments = given.student, given.logits, labels
                loss = fastkd.kd_loss(
                    *arguments, kd_ratio=ratio, reduction=reduction, backend=backend, **more
                )
                count = 2 + (reduction != "none" or "return_metrics" in more)
                assert len(watch.seen.launches) == count, more
                backward(watch, loss, reduction)
                assert len(watch.seen.launches) == count + 1, more
                assert watch.seen.small == [], more
                launches_are_placed(watch)


def test_small_kernels_that_the_documents_count() -> None:
    """With the native backend torch computes float16's factors of gradients."""
    with watched(DEVICE) as watch:
        given = Inputs(watch, torch.float16)
        loss = fastkd.kd_loss(given.student, given.logits, return_metrics=True, backend="native")
        assert watch.seen.small == []
        backward(watch, loss, "mean")
        assert len(watch.seen.small) == 3
        assert len(watch.seen.launches) == 4


def test_gradients_have_the_strides_of_views() -> None:
    """Rows of a view and of its gradient begin alike, so that a vocabulary of odd size costs no vectors."""
    with watched(DEVICE) as watch:
        whole = torch.empty(2, 6, 1001, device=DEVICE)
        views = {
            "shifted": (whole[:, :-1], (6006, 1001, 1)),
            "padded": (whole[..., :999], (6006, 1001, 1)),
            "flat": (whole[0, :, 1:], (1001, 1)),
            "one sequence": (whole[:1, :-1], (5005, 1001, 1)),
            "contiguous": (whole, (6006, 1001, 1)),
            "every fourth": (whole[:, ::4], (2002, 1001, 1)),
            "transposed": (whole.transpose(0, 1), (2002, 1001, 1)),
            "expanded": (whole[:1].expand(2, 6, 1001), (6006, 1001, 1)),
            "strided": (whole[..., ::2], (3006, 501, 1)),
        }
        for name, (view, strides) in views.items():
            teacher = torch.empty_like(view, memory_format=torch.contiguous_format)
            fastkd.kd_loss(view.requires_grad_(), teacher)
            gradient = watch.backward(torch.empty((), device=DEVICE), None, None)[3]
            assert gradient is not None and gradient.shape == view.shape, name
            assert gradient.stride() == strides, name
        assert len(watch.seen.launches) == 4 * len(views)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_class_weights_and_soft_labels(smoothing: float) -> None:
    with watched(DEVICE) as watch:
        given = Inputs(watch)
        weights = torch.empty(given.student.shape[-1], device=DEVICE)
        options = {"kd_ratio": 0.5, "class_weights": weights, "label_smoothing": smoothing}
        for labels in (given.labels, given.logits.float()):
            fastkd.kd_loss(given.student, given.logits, labels, return_metrics=True, **options)
            fastkd.linear_kd_loss(given.hidden, given.weight, given.teacher, labels, **options)
        launches_are_placed(watch, 8)


@pytest.mark.parametrize("tail", ["renormalize", "bucket"])
def test_a_part_of_the_teachers_columns(tail: str) -> None:
    with watched(DEVICE) as watch:
        given = Inputs(watch)
        columns = torch.empty(given.student.shape[-1], device=DEVICE, dtype=torch.long)
        options = {"divergence": "tvd", "teacher_columns": columns, "teacher_tail": tail}
        dense(watch, given.logits.requires_grad_(), given, return_metrics=True, **options)
        linear(watch, given.teacher, given, **options)
        launches_are_placed(watch)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_divergences(divergence: str) -> None:
    with watched(DEVICE) as watch:
        given = Inputs(watch)
        dense(watch, given.logits, given, divergence=divergence, z_loss=1e-3)
        linear(watch, given.teacher, given, divergence=divergence, z_loss=1e-3)
        launches_are_placed(watch)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("keep", [False, True])
def test_dtypes_and_a_teachers_gradient(dtype: torch.dtype, keep: bool) -> None:
    with watched(DEVICE, keeps_graph=keep) as watch:
        given = Inputs(watch, dtype)
        dense(watch, given.logits.requires_grad_(), given, kd_ratio=0.5, z_loss=1e-3)
        linear(watch, given.logits, given, kd_ratio=0.5, z_loss=1e-3, chunk_size=3)
        launches_are_placed(watch)
        # A second backward needs the stored gradients, so copies are returned. float16 ones are not stored.
        gradient = given.student.untyped_storage().nbytes()
        assert watch.seen.made.count(gradient) == (6 if keep and dtype != torch.float16 else 3)


@pytest.mark.parametrize(
    ("divergence", "tail"),
    [SPARSE_CASES[0], *(pytest.param(*x, marks=pytest.mark.slow) for x in SPARSE_CASES[1:])],
)
def test_sparse_teachers(divergence: str, tail: str) -> None:
    for loss, reduction in itertools.product((dense, linear), ("mean", "none")):
        metrics = grad = reduction == "mean"
        with watched(DEVICE) as watch, during(loss=loss.__name__, reduction=reduction):
            given = Inputs(watch)
            loss(
                watch, given.sparse(tail, grad), given, divergence=divergence, kd_ratio=0.5,
                reduction=reduction, return_metrics=metrics,
            )  # fmt: skip
            launches_are_placed(watch, 3 if loss is dense else 5)
            gradient = given.student.untyped_storage().nbytes()
            if loss is dense:
                assert watch.seen.made.count(gradient) == 1
                assert max(x for x in watch.seen.made if x != gradient) < gradient // 4


@pytest.mark.parametrize(
    ("divergence", "tail"), [("forward_kl", "renormalize"), ("jsd", "bucket"), ("forward_kl", "drop")]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("backend", ["native", "triton"])
def test_launches_of_a_sparse_teacher(
    divergence: str, tail: str, backend: str, dtype: torch.dtype, grad: bool
) -> None:
    """A call takes three launches, as with dense logits: the one that computes also checks the entries.

    One converts log-probabilities that are not float32, and two do so with their gradient.
    """
    needs(backend)
    with watched(DEVICE) as watch:
        given = Inputs(watch, dtype)
        converts = (dtype != torch.float32) * (1 + 2 * grad)
        options: list[dict[str, Any]] = [{}, {"label_smoothing": 0.1, "z_loss": 1e-3}, {"inplace": True}]
        options += [{"return_metrics": True}, {"token_weights": given.weights, "num_items": given.count}]
        for more in options:
            watch.seen.launches.clear()
            watch.seen.small.clear()
            arguments = given.student, given.sparse(tail, grad), given.labels
            loss = fastkd.kd_loss(*arguments, divergence=divergence, kd_ratio=0.5, backend=backend, **more)
            assert len(watch.seen.launches) == 3, more
            assert len(watch.seen.small) == converts, watch.seen.small
            backward(watch, loss, "mean")
            assert len(watch.seen.launches) + len(watch.seen.small) == 4 + converts + grad, more
            launches_are_placed(watch)


@pytest.mark.parametrize(
    ("backend", "k", "launches"),
    [("native", 1024, 3), ("native", 1025, 4), ("triton", 511, 3), ("triton", 512, 4)],
)
def test_sparse_teachers_with_many_entries(backend: str, k: int, launches: int) -> None:
    """The entries of a row have to fit a block's memory; more of them are computed in torch."""
    needs(backend)
    with watched(DEVICE) as watch:
        given = Inputs(watch, vocab=2000)
        shape = (*TOKENS, k)
        indices = torch.empty(shape, dtype=torch.int64, device=DEVICE)
        teacher = fastkd.SparseTeacher(indices, torch.empty(shape, device=DEVICE))
        fastkd.kd_loss(given.student, teacher, backend=backend)
        assert len(watch.seen.launches) == launches


HEAD = {"temperature": 2.0, "logit_softcap": 20.0, "logit_scale": 0.5, "vocab_size": 990}


@pytest.mark.parametrize("teacher", ["hidden", "logits", "shifted"])
@pytest.mark.parametrize(
    "dtype",
    [torch.bfloat16, *(pytest.param(x, marks=pytest.mark.slow) for x in (torch.float32, torch.float16))],
    ids=str,
)
def test_linear(teacher: str, dtype: torch.dtype) -> None:
    for reduction, chunk_size in itertools.product(("mean", "none"), (None, 3)):
        with watched(DEVICE) as watch, during(reduction=reduction, chunk_size=chunk_size):
            given = Inputs(watch, dtype)
            source = given.teacher if teacher == "hidden" else vars(given)[teacher]
            options = {"kd_ratio": 0.5, "return_metrics": True, "chunk_size": chunk_size, **HEAD}
            linear(watch, source, given, reduction=reduction, **options)
            launches_are_placed(watch, 1)
            if chunk_size:
                # No tensor holds the logits of all tokens; a weight's float32 sum is the largest.
                assert max(watch.seen.made) < given.student.untyped_storage().nbytes()


@pytest.mark.parametrize("teacher", ["hidden", "logits", "shifted"])
def test_linear_in_the_reference_backend(teacher: str) -> None:
    with watched(DEVICE) as watch:
        given = Inputs(watch)
        source = given.teacher if teacher == "hidden" else vars(given)[teacher]
        linear(watch, source, given, kd_ratio=0.5, return_metrics=True, backend="reference", **HEAD)


def test_sparse_teachers_in_the_reference_backend() -> None:
    with watched(DEVICE) as watch:
        given = Inputs(watch)
        options = {"kd_ratio": 0.5, "return_metrics": True, "backend": "reference"}
        dense(watch, given.sparse("bucket", True), given, **options)
        linear(watch, given.sparse("drop"), given, **options)


@pytest.mark.slow
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_the_reference_backend(divergence: str) -> None:
    """The reference backend, for GPUs without kernels, may take memory but must not make the host wait."""
    with watched(DEVICE) as watch:
        given = Inputs(watch, torch.float64)
        options = {"kd_ratio": 0.5, "label_smoothing": 0.1, "z_loss": 1e-3, "return_metrics": True}
        dense(watch, given.logits, given, divergence=divergence, backend="reference", **options)
        assert watch.seen.launches == []


GATHER = "all_gather_single" if hasattr(sharding.dist, "all_gather_single") else "all_gather_into_tensor"


@pytest.fixture
def two_processes() -> Iterator[list[int]]:
    """Fake collectives of a group of two, where this process is the second; records the bytes of each."""
    sent: list[int] = []

    def gather(out: Tensor, x: Tensor, group: object) -> None:
        sent.append(x.numel() * x.element_size())
        out.view(2, *x.shape).copy_(x[None].expand(2, *x.shape))

    with (
        mock.patch.object(sharding.dist, "get_rank", lambda group: 1),
        mock.patch.object(sharding.dist, "get_world_size", lambda group: 2),
        mock.patch.object(sharding.dist, GATHER, gather),
        mock.patch.object(tokens_module, "_resolve", lambda name: name),
        mock.patch.object(fastkd.losses.checks, "shards", lambda columns, _, vocab, __: (vocab or -1, "tp")),
    ):
        yield sent


# forward_kl is the plainest case, jsd has sums of its own, renyi has a shift between shards, alpha_beta has
# three streams, and decoupled computes the label separately.
@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("divergence", ["forward_kl", "jsd", "renyi", "alpha_beta", "decoupled"])
def test_vocabulary_shards(divergence: str, backend: str, two_processes: list[int]) -> None:
    for loss, metrics in ((dense, True), (linear, False)):
        with watched(DEVICE) as watch, during(loss=loss.__name__):
            given = Inputs(watch)
            options = {"divergence": divergence, "kd_ratio": 0.5, "label_smoothing": 0.1, "backend": backend}
            teacher = given.logits if loss is dense else given.teacher
            loss(watch, teacher, given, return_metrics=metrics, group="tp", **options)
            if backend == "native":
                launches_are_placed(watch, 4 if divergence == "jsd" else 3)
            assert two_processes and max(two_processes) < given.student.untyped_storage().nbytes() // 4


@pytest.mark.parametrize("tail", ["renormalize", "bucket", "drop"])
def test_sparse_teachers_of_shards(tail: str, two_processes: list[int]) -> None:
    for loss in (dense, linear):
        with watched(DEVICE) as watch:
            given = Inputs(watch)
            options = {"kd_ratio": 0.5, "return_metrics": True, "group": "tp"}
            loss(watch, given.sparse(tail, True), given, **options)
            launches_are_placed(watch, 3)


def test_shards_of_a_padded_vocabulary_wait_once(two_processes: list[int]) -> None:
    """The one wait that the documentation allows: the host must know where its shard's columns end."""
    with watched(DEVICE, reads_allowed=1) as watch:
        given = Inputs(watch)
        dense(watch, given.logits, given, kd_ratio=0.5, vocab_size=900, group="tp")
        assert watch.reads_allowed == 0
    with watched(DEVICE) as watch, pytest.raises(Refused, match="wait"):
        given = Inputs(watch)
        dense(watch, given.logits, given, kd_ratio=0.5, vocab_size=900, group="tp")


@pytest.mark.parametrize(
    "way", [*WAYS[:1], *(pytest.param(way, marks=pytest.mark.slow) for way in WAYS[1:])], ids="-".join
)
def test_torch_compile_makes_one_graph_of_the_loss(way: tuple[str, str]) -> None:
    """torch.compile makes one graph each of forward and backward, and they include operations on the loss."""
    torch._dynamo.reset()
    for options in (
        {"metrics": True},
        {"reduction": "none", "dtype": torch.float16},
        {"reduction": "sum", "divergence": "jsd", "vocab_size": 990},
    ):
        plain = options.get("reduction", "mean") == "mean"
        case = Case(way, "cpu", "native", rows=6, **options)
        case.device["labels"].clamp_(max=989)
        if not plain:
            case.device["items"] = None

        def step(case: Case) -> tuple[Tensor, ...]:
            loss, metrics = case.forward()
            return 2.0 * loss.sum(), *metrics

        found = []
        for run in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
            for leaf in case.leaves.values():
                leaf.grad = None
            loss, *metrics = run(case)
            loss.backward()
            found.append([loss.detach(), *metrics, *(leaf.grad for leaf in case.leaves.values())])
        with during(**options):
            for eager, compiled in zip(*found, strict=True):
                torch.testing.assert_close(compiled, eager)
