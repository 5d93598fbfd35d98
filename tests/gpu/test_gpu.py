"""Test the particulars of a GPU: streams, graphs, waiting, devices, memory, bad labels, determinism.

Where a test makes sense without a GPU it runs on the CPU too (``native-cpu``), which shows that the test
itself is right before a GPU is at hand. ``test_gpu_paths.py`` tests the same properties without a GPU,
``test_gpu_huge.py`` has the tests that need gigabytes, ``gpu/sanitize.py`` those that need compute-sanitizer.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from support.cases import EVERY_CASE
from support.closeness import assert_gradient, assert_value
from support.gpu_cases import CHUNK, WAYS, WIDTHS, Case
from support.oracle import reference_gradients
from support.targets import GPU_TARGETS, Target
from torch import Tensor

import fastkd
from fastkd.backends import native
from fastkd.divergences import DIVERGENCES
from fastkd.ops.head import _add_product

EVERY_WAY = pytest.mark.parametrize("way", WAYS, ids="-".join)
WITH_METRICS = pytest.mark.parametrize("metrics", [False, True], ids=["", "metrics"])
IN_FLOAT32_AND_BFLOAT16 = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


@pytest.fixture(params=GPU_TARGETS)
def place(request: pytest.FixtureRequest) -> Iterator[Target]:
    """Run the test with each backend on the GPU, and with one on the CPU."""
    with request.param.active():
        yield request.param


@contextmanager
def no_waiting(device: str) -> Iterator[None]:
    """Inside the block, an operation that makes the host wait for the GPU raises."""
    if device == "cpu":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def captured(case: Case, device: str) -> Callable[[], Tensor]:
    """Capture one forward and backward as a CUDA graph; return a function that replays it for the loss."""
    if device == "cpu":
        return lambda: case.run()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # lets Triton compile and libraries create their handles before the capture
            case.run()
    torch.cuda.current_stream().wait_stream(side)
    for leaf in case.leaves.values():
        leaf.grad = None
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = case.run()

    def replay() -> Tensor:
        graph.replay()
        torch.cuda.synchronize()
        return loss

    return replay


@EVERY_WAY
@IN_FLOAT32_AND_BFLOAT16
@WITH_METRICS
def test_graph_capture(place: Target, way: tuple[str, str], dtype: torch.dtype, metrics: bool) -> None:
    case = Case(way, place.device, place.backend, dtype=dtype, metrics=metrics)
    replay = captured(case, place.device)
    for seed in (1, 2, 3):
        case.refill(seed)
        case.check(replay())


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_graph_capture_of_every_divergence(place: Target, divergence: str) -> None:
    case = Case(("dense", "logits"), place.device, place.backend, divergence=divergence)
    replay = captured(case, place.device)
    case.refill(5)
    case.check(replay())


@EVERY_WAY
def test_18_side_stream(place: Target, way: tuple[str, str]) -> None:
    """Kernels run on the current stream, not on the legacy default one, and their memory is not reused before
    that stream has finished with it."""
    case = Case(way, place.device, place.backend, rows=64, vocab=5000)
    if place.device == "cpu":
        return case.check(case.run())
    case.run()
    stream = torch.cuda.Stream()
    for seed in range(5):
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(20_000_000)  # about 10 ms, so that the numbers are written late
            case.refill(seed)
            loss = case.run()
        # Allocations made meanwhile must not get memory that the stream still uses.
        for _ in range(4):
            torch.full((64, 5000), float("nan"), device=place.device)
        stream.synchronize()
        case.check(loss)


@EVERY_WAY
def test_18_two_streams_at_once(place: Target, way: tuple[str, str]) -> None:
    cases = [Case(way, place.device, place.backend, rows=64, vocab=5000) for _ in range(2)]
    if place.device == "cpu":
        return cases[0].check(cases[0].run())
    streams = [torch.cuda.Stream() for _ in cases]
    for case in cases:
        case.run()
    torch.cuda.synchronize()
    for seed in range(3):
        losses = []
        for k, (case, stream) in enumerate(zip(cases, streams, strict=True)):
            with torch.cuda.stream(stream):
                case.refill(10 * k + seed)
                losses.append(case.run())
        torch.cuda.synchronize()
        for case, loss in zip(cases, losses, strict=True):
            case.check(loss)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@EVERY_WAY
@pytest.mark.parametrize("backend", ["reference", "native", "triton"])
def test_18_second_device(way: tuple[str, str], backend: str) -> None:
    case = Case(way, "cuda:1", backend, metrics=True)
    with torch.cuda.device(0):
        loss = case.run()
        assert torch.cuda.current_device() == 0
    assert {x.device for x in (loss, *case.metrics)} == {torch.device("cuda:1")}
    case.check(loss)


@EVERY_WAY
@WITH_METRICS
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_14_no_waiting(place: Target, way: tuple[str, str], reduction: str, metrics: bool) -> None:
    case = Case(way, place.device, place.backend, metrics=metrics)

    def step() -> Tensor:
        if reduction == "mean":
            return case.run()
        x = case.device
        options = {"kd_ratio": 0.5, "reduction": "none", "backend": place.backend}
        if way[0] == "linear":
            loss = fastkd.linear_kd_loss(x["hidden"], x["weight"], case._teacher(x), x["labels"], **options)
        else:
            loss = fastkd.kd_loss(x["student"], case._teacher(x), x["labels"], **options)
        loss.backward(x["weights"])
        return loss

    step()  # compiles
    with no_waiting(place.device):
        loss = step()
    assert torch.isfinite(loss).all()


@pytest.fixture
def alone(place: Target, tmp_path: Path) -> Iterator[dist.ProcessGroup]:
    """A process group of this process alone: NCCL on a GPU, Gloo on the CPU."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    name = "gloo" if place.device == "cpu" else "nccl"
    if name == "nccl" and not dist.is_nccl_available():
        pytest.skip("torch was built without NCCL")
    dist.init_process_group(name, init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


@pytest.mark.parametrize("way", [way for way in WAYS if way != ("inplace", "sparse")], ids="-".join)
def test_a_vocabulary_of_one_shard(place: Target, alone: dist.ProcessGroup, way: tuple[str, str]) -> None:
    """A loss in phases with collectives between them equals that of one launch, and the host never waits."""
    case = Case(way, place.device, place.backend, group=alone)
    case.run()
    with no_waiting(place.device):
        loss = case.run()
    del case.options["group"]
    case.check(loss)


@pytest.mark.parametrize("label", [-1, 1000, 2**40])
@pytest.mark.parametrize("divergence", [*DIVERGENCES, None], ids=str)
def test_label_out_of_range(place: Target, label: int, divergence: str | None) -> None:
    s = torch.randn(4, 1000, device=place.device, requires_grad=True)
    t = torch.randn(4, 1000, device=place.device)
    labels = torch.tensor([3, label, 5, 7], device=place.device)
    # None means cross-entropy alone.
    options = {"kd_ratio": 0.5, "divergence": divergence} if divergence else {"kd_ratio": 0.0}

    def call() -> Tensor:
        return fastkd.kd_loss(s, t, labels, reduction="none", **options, **place.options)

    out_of_range(place, call, s)


@pytest.mark.parametrize("label", [-1, 1000, 2**40])
@pytest.mark.parametrize("teacher", ["logits", "sparse"])
def test_label_out_of_range_of_a_head(place: Target, label: int, teacher: str) -> None:
    h = torch.randn(4, 8, device=place.device, requires_grad=True)
    w = torch.randn(1000, 8, device=place.device)
    t = torch.randn(4, 1000, device=place.device)
    labels = torch.tensor([3, label, 5, 7], device=place.device)
    logprobs, indices = torch.log_softmax(t, -1).topk(9)
    source = t if teacher == "logits" else fastkd.SparseTeacher(indices, logprobs)

    def call() -> Tensor:
        options = {"kd_ratio": 0.5, "reduction": "none", "chunk_size": 3, **place.options}
        return fastkd.linear_kd_loss(h, w, source, labels, **options)

    out_of_range(place, call, h)


def out_of_range(place: Target, call: Callable[[], Tensor], leaf: Tensor) -> None:
    """Assert an error on the CPU, where raising needs no wait, and NaN in token 1 alone on a GPU."""
    if place.device == "cpu":
        with pytest.raises(IndexError, match="token 1"):
            call()
        return
    loss = call()
    loss.sum().backward()
    assert leaf.grad is not None
    assert loss.isnan().tolist() == [False, True, False, False]
    assert leaf.grad[1].isnan().all() and torch.isfinite(leaf.grad[[0, 2, 3]]).all()


@EVERY_WAY
@IN_FLOAT32_AND_BFLOAT16
@WITH_METRICS
def test_two_runs_are_bit_equal(
    place: Target, way: tuple[str, str], dtype: torch.dtype, metrics: bool
) -> None:
    case = Case(way, place.device, place.backend, rows=67, vocab=5003, dtype=dtype, metrics=metrics)
    first = case.results()
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(first, case.results(), strict=True))


@EVERY_CASE
def test_two_runs_of_every_divergence(place: Target, divergence: str, parameters: dict[str, float]) -> None:
    case = Case(
        ("dense", "logits"), place.device, place.backend, 67, 5003, divergence=divergence, **parameters
    )
    first = case.results()
    assert all(torch.equal(a, b) for a, b in zip(first, case.results(), strict=True))


@EVERY_WAY
@IN_FLOAT32_AND_BFLOAT16
@pytest.mark.parametrize("vocab", [1001, 4096, 32_000])
def test_every_way(place: Target, way: tuple[str, str], dtype: torch.dtype, vocab: int) -> None:
    case = Case(way, place.device, place.backend, vocab=vocab, dtype=dtype)
    case.check(case.run())


@IN_FLOAT32_AND_BFLOAT16
@pytest.mark.parametrize("vocab", [128_256, 262_144, 470_000, 1_000_003])
def test_long_rows(place: Target, dtype: torch.dtype, vocab: int) -> None:
    """Test rows up to the most columns that a cluster of blocks can hold, and longer ones."""
    s = (torch.randn(3, vocab) * 2).to(dtype).to(place.device).requires_grad_()
    t = (torch.randn(3, vocab) * 2).to(dtype).to(place.device)
    labels = torch.tensor([0, vocab - 1, vocab // 2], device=place.device)
    for divergence in ("forward_kl", "jsd"):
        options = {"kd_ratio": 0.5, "temperature": 2.0, "divergence": divergence}
        s.grad = None
        loss = fastkd.kd_loss(s, t, labels, **options, **place.options)
        loss.backward()
        expected, by_s, _ = reference_gradients(s, t, labels, **options)
        assert_value(loss.detach(), expected, atol=1e-5)
        assert_gradient(s.grad, by_s, factor=2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_sums_of_products(device: str, dtype: torch.dtype) -> None:
    """The products of chunks are summed in float32; on a GPU they are not rounded before that either."""
    a, b = torch.randn(6, 300, 257), torch.randn(6, 257, 64)
    a, b = a.to(dtype).to(device), b.to(dtype).to(device)
    total = torch.full((300, 64), float("nan"), device=device)
    for k in range(6):
        _add_product(total, a[k], b[k], first=k == 0)
    exact = torch.bmm(a.double(), b.double()).sum(0)
    error = (total.double() - exact).norm() / exact.norm()
    assert error < (1e-6 if device == "cuda" else torch.finfo(dtype).eps)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["native", "triton"])
@EVERY_WAY
def test_memory(way: tuple[str, str], backend: str) -> None:
    """Besides the gradients, a call allocates only per-token numbers, a sparse teacher's ``(tokens, K)``
    gradient, and chunks."""
    rows, vocab = 512, 32_000
    case = Case(way, "cuda", backend, rows, vocab, dtype=torch.bfloat16)
    torch.utils.deterministic.fill_uninitialized_memory = False
    case.run()
    for leaf in case.leaves.values():
        leaf.grad = None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    case.run()
    extra = torch.cuda.max_memory_allocated() - before
    logits = rows * vocab * 2
    if way[0] == "linear":
        # Chunks of both sides and of the softcap's slope, the weight's gradient and its float32 sum.
        allowed = 6 * CHUNK * vocab * 4 + vocab * WIDTHS[0] * (4 + 2)
        assert extra < allowed + 2**21 < logits
    else:
        gradients = 2 if way[0] == "inplace" else 1  # with `inplace` the case makes logits, too
        assert extra < gradients * logits + 2**22


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["native", "triton"])
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled(backend: str, mode: str) -> None:
    """torch.compile makes one graph without breaks, and can turn it into CUDA graphs itself."""
    case = Case(("linear", "hidden"), "cuda", backend)
    x = case.device

    def step(hidden: Tensor, weight: Tensor) -> Tensor:
        dense = fastkd.kd_loss(hidden @ weight.t(), x["logits"], x["labels"], kd_ratio=0.5, backend=backend)
        linear = fastkd.linear_kd_loss(
            hidden, weight, case._teacher(x), x["labels"], kd_ratio=0.5, chunk_size=5, backend=backend
        )
        return 2.0 * (dense + linear)

    compiled = torch.compile(step, fullgraph=True, mode=mode)
    for seed in range(4):
        case.refill(seed)
        found = []
        for run in (step, compiled):
            for leaf in case.leaves.values():
                leaf.grad = None
            loss = run(x["hidden"], x["weight"])
            loss.backward()
            found.append([loss.detach().clone(), x["hidden"].grad.clone(), x["weight"].grad.clone()])
        for eager, fused in zip(*found, strict=True):
            torch.testing.assert_close(fused, eager, rtol=1e-4, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (9, 0),
    reason="clusters of blocks need compute capability 9.0",
)
@pytest.mark.parametrize("rows", [None, 5], ids=["rows", "rows in one cluster"])
@pytest.mark.parametrize("blocks", [None, 1, 2, 4, 8])
@EVERY_CASE
def test_clusters_of_every_size(
    blocks: int | None, rows: int | None, divergence: str, parameters: dict[str, float]
) -> None:
    alike = [(torch.float32, 8192), (torch.bfloat16, 16_384), (torch.float16, 9001)]
    cases = [(dtype, dtype, vocab) for dtype, vocab in alike] + [(torch.bfloat16, torch.float32, 8192)]
    for student, teacher, vocab in cases:
        s = (torch.randn(5, vocab, device="cuda") * 2).to(student).requires_grad_()
        t = (torch.randn(5, vocab, device="cuda") * 2).to(teacher).requires_grad_()
        labels = torch.randint(0, vocab, (5,), device="cuda")
        options = {"divergence": divergence, "kd_ratio": 0.6, "temperature": 2.0, **parameters}
        labels[3] = -100
        with native.forced_cuda_kernel("cluster", blocks, rows):
            loss = fastkd.kd_loss(s, t, labels, backend="native", **options)
        loss.backward()
        expected, by_s, by_t = reference_gradients(s, t, labels, **options)
        assert_value(loss.detach(), expected, atol=1e-5)
        assert_gradient(s.grad, by_s, factor=1.5)
        assert_gradient(t.grad, by_t, factor=4)


@pytest.mark.gpu
@IN_FLOAT32_AND_BFLOAT16
def test_many_rows(dtype: torch.dtype) -> None:
    """More rows than all clusters of a device take at once, with an odd vocabulary, half of them ignored."""
    rows, vocab = 6000, 1003
    s = (torch.randn(rows, vocab, device="cuda") * 2).to(dtype).requires_grad_()
    t = (torch.randn(rows, vocab, device="cuda") * 2).to(dtype)
    labels = torch.randint(0, vocab, (rows,), device="cuda")
    labels[torch.rand(rows, device="cuda") < 0.5] = -100
    for divergence in ("forward_kl", "jsd"):
        options = {"divergence": divergence, "kd_ratio": 0.5, "temperature": 2.0}
        s.grad = None
        loss = fastkd.kd_loss(s, t, labels, backend="native", **options)
        loss.backward()
        expected, by_s, _ = reference_gradients(s, t, labels, **options)
        assert_value(loss.detach(), expected, atol=1e-5)
        assert_gradient(s.grad, by_s, factor=2)
