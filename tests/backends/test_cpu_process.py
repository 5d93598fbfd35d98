"""Test the CPU backend's threads, forks, large tensors and import."""

from __future__ import annotations

import os
import signal
import threading
import time

import numpy as np
import pytest
import torch
from support.oracle import reference_gradients

import fastkd
from fastkd import _C
from fastkd.backends import native
from fastkd.backends.base import Call
from fastkd.spec import LossSpec


def _most_threads_during(call) -> int:
    """The largest thread count of this process while ``call`` runs."""
    seen, done = [0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            seen[0] = max(seen[0], len(os.listdir("/proc/self/task")))

    watcher = threading.Thread(target=watch)
    watcher.start()
    time.sleep(0.05)
    before = seen[0]
    call()
    done.set()
    watcher.join()
    return seen[0] - before


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads in /proc")
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_exactly_the_threads_torch_has(threads: int) -> None:
    s, t = torch.randn(256, 60_000), torch.randn(256, 60_000)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with native.forced_isa("baseline"):
            assert _most_threads_during(lambda: fastkd.kd_loss(s, t)) == threads - 1
    finally:
        torch.set_num_threads(before)


def test_fork_after_use() -> None:
    """A process forked after the parent used its threads must neither hang nor compute other numbers."""
    s, t = torch.randn(64, 20_000), torch.randn(64, 20_000)
    scale = torch.full((64,), 1 / 64)

    def value() -> float:

        # Calls the kernel directly, because torch's own threads do not survive a fork.
        out = torch.empty(64)
        spec = LossSpec("forward_kl", 0.5, 0.5, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, -100, 20_000)
        native.NativeBackend().rows(Call(s[None], t[None], None, scale, scale, spec, out))
        return sum(float(x) for x in out)

    expected = value()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        os.write(write, repr(value()).encode())
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status == 0, "the child hung or crashed"
    assert float(os.read(read, 100)) == expected


def test_15_offsets_past_32_bits() -> None:
    """Row offsets exceed 2^31 elements in a strided tensor whose memory is mostly never touched."""
    base = torch.randn(2, 8)
    storage = torch.from_numpy(np.zeros(2**31 + 64, dtype=np.uint16)).view(torch.bfloat16)  # pages on demand
    far = storage.as_strided((2, 8), (2**31 + 8, 1))
    far.copy_(base)
    loss = fastkd.kd_loss(far, base, backend="native", reduction="none")
    near = fastkd.kd_loss(base.bfloat16(), base, backend="native", reduction="none")
    assert torch.equal(loss, near)


@pytest.mark.slow
def test_15_more_than_2_31_elements() -> None:
    """The row index times the row length exceeds 2^31: 4.3 GB of logits and a gradient of the same size."""
    rows, columns = 2**15 + 1, 2**16
    s = torch.zeros(rows, columns, dtype=torch.bfloat16)
    t = torch.zeros(1, columns, dtype=torch.bfloat16).expand(rows, columns)
    s[-1, 7] = 3.0
    s.requires_grad_()
    weights = torch.zeros(rows)
    weights[-1] = 1
    loss = fastkd.kd_loss(s, t, token_weights=weights, reduction="sum")
    loss.backward()
    expected, by_s, _ = reference_gradients(s[-1:].detach(), t[:1])
    assert abs(loss.item() - expected.item()) < 1e-6
    assert torch.allclose(s.grad[-1].double(), by_s[0], rtol=1e-2, atol=1e-12)
    assert (s.grad[:3] == 0).all()


def test_the_module_imports_without_a_driver() -> None:
    if not _C.built_with_cuda:
        pytest.skip("built without CUDA")
    reason = _C.cuda_missing(0)
    assert reason is None if torch.cuda.is_available() else reason
