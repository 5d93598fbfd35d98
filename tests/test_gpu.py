"""What only a GPU can show: streams, graphs, devices, huge tensors, labels out of range."""

from __future__ import annotations

import pytest
import torch
from closeness import assert_gradient, assert_value
from oracle import Sparse, reference_gradients

import fastkd

pytestmark = pytest.mark.gpu
BACKENDS = ["native", "triton"]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


def test_18_side_stream(backend: str) -> None:
    """The kernel waits for the stream that is current, not for the legacy one."""
    stream = torch.cuda.Stream()
    t = torch.randn(256, 50_000, device="cuda")
    for _ in range(5):
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(20_000_000)  # about 10 ms: the logits are written late
            s = torch.randn(256, 50_000, device="cuda").requires_grad_()
            loss = fastkd.kd_loss(s, t, backend=backend)
            loss.backward()
        stream.synchronize()
        expected, by_s, _ = reference_gradients(s, t)
        assert_value(loss.detach(), expected)
        assert_gradient(s.grad, by_s)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_18_second_device(backend: str) -> None:
    s, t = torch.randn(8, 1000, device="cuda:1", requires_grad=True), torch.randn(8, 1000, device="cuda:1")
    with torch.cuda.device(0):
        loss = fastkd.kd_loss(s, t, backend=backend)
        loss.backward()
        assert torch.cuda.current_device() == 0
    expected, by_s, _ = reference_gradients(s, t)
    assert_value(loss.detach(), expected)
    assert_gradient(s.grad, by_s)


def test_14_no_synchronisation(backend: str) -> None:
    s = torch.randn(8, 1000, device="cuda", requires_grad=True)
    t, labels = torch.randn(8, 1000, device="cuda"), torch.randint(0, 1000, (8,), device="cuda")
    h, w = torch.randn(8, 16, device="cuda", requires_grad=True), torch.randn(1000, 16, device="cuda")
    count = torch.tensor(8, device="cuda")
    options = {"kd_ratio": 0.5, "num_items": count, "backend": backend}
    logprobs, indices = torch.log_softmax(t, -1).topk(16)
    sparse = fastkd.SparseTeacher(indices, logprobs, "bucket")

    def step() -> None:
        loss, metrics = fastkd.kd_loss(s, t, labels, divergence="jsd", return_metrics=True, **options)
        loss = loss + fastkd.linear_kd_loss(h, w, t, labels, **options) + metrics.kd
        loss = loss + fastkd.kd_loss(s, sparse, labels, **options)
        loss = loss + fastkd.linear_kd_loss(h, w, sparse, labels, **options)
        (0.5 * loss).backward()

    step()  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("teacher", ["logits", "sparse"])
def test_graph_capture(backend: str, teacher: str) -> None:
    s = torch.randn(8, 1000, device="cuda", requires_grad=True)
    t = torch.randn(8, 1000, device="cuda")
    temperature, given, oracles = 2.0, t, t
    if teacher == "sparse":
        logprobs, indices = torch.log_softmax(t, -1).topk(16)
        temperature, given = 1.0, fastkd.SparseTeacher(indices, logprobs, "bucket")
        oracles = Sparse(indices, logprobs, "bucket")
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            s.grad = None
            fastkd.kd_loss(s, given, temperature=temperature, backend=backend).backward()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    s.grad = None
    with torch.cuda.graph(graph):
        loss = fastkd.kd_loss(s, given, temperature=temperature, backend=backend)
        loss.backward()
    with torch.no_grad():
        s.copy_(torch.randn_like(s))
    graph.replay()
    torch.cuda.synchronize()
    expected, by_s, _ = reference_gradients(s, oracles, temperature=temperature)
    assert_value(loss.detach(), expected)
    assert_gradient(s.grad, by_s)


@pytest.mark.parametrize("label", [-1, 1000, 2**40])
def test_label_out_of_range_is_nan(backend: str, label: int) -> None:
    s = torch.randn(4, 1000, device="cuda", requires_grad=True)
    t, labels = torch.randn(4, 1000, device="cuda"), torch.tensor([3, label, 5, 7], device="cuda")
    loss = fastkd.kd_loss(s, t, labels, kd_ratio=0.5, reduction="none", backend=backend)
    loss.sum().backward()
    assert loss.isnan().tolist() == [False, True, False, False]
    assert torch.isfinite(s.grad[[0, 2, 3]]).all()


def test_15_more_than_2_31_elements(backend: str) -> None:
    rows, columns = 2**15 + 1, 2**16
    s = torch.zeros(rows, columns, dtype=torch.bfloat16, device="cuda")
    t = torch.zeros(1, columns, dtype=torch.bfloat16, device="cuda").expand(rows, columns)
    s[-1, 7] = 3.0
    s.requires_grad_()
    weights = torch.zeros(rows, device="cuda")
    weights[-1] = 1
    loss = fastkd.kd_loss(s, t, token_weights=weights, reduction="sum", backend=backend)
    loss.backward()
    expected, by_s, _ = reference_gradients(s[-1:].detach(), t[:1])
    assert abs(loss.item() - expected.item()) < 1e-6
    assert torch.allclose(s.grad[-1].double(), by_s[0], rtol=1e-2, atol=1e-12)
    assert (s.grad[:-1] == 0).all()


def test_inplace_bfloat16(backend: str) -> None:
    x = torch.randn(64, 50_257, device="cuda").bfloat16().requires_grad_()
    t = torch.randn(64, 50_257, device="cuda").bfloat16()
    fastkd.kd_loss(x * 1.0, t, inplace=True, backend=backend).backward()
    _, by_s, _ = reference_gradients(x, t)
    assert_gradient(x.grad, by_s)
