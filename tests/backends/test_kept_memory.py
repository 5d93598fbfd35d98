"""Test the memory kept for large gradients: when it is reused, when it must not be, and its bounds."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import fastkd
from fastkd.backends import memory
from fastkd.backends.native import block as native_block, kept_bytes

pytestmark = pytest.mark.skipif(
    sys.platform not in ("linux", "darwin"),
    reason="blocks are kept where the system can mark them",
)
CPU = torch.device("cpu")
MEGABYTE = 2**20


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    fastkd.release_memory()
    yield
    fastkd.keep_memory(None)
    fastkd.release_memory()


def block(megabytes: float, dtype: torch.dtype = torch.float32) -> Tensor:
    return memory.empty((int(megabytes * MEGABYTE) // dtype.itemsize,), dtype, CPU)


def leaf(rows: int = 40, columns: int = 32_000, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(rows, columns).to(dtype).requires_grad_()


def gradient_of(x: Tensor) -> Tensor:
    x.grad = None
    fastkd.kd_loss(x, torch.ones_like(x), temperature=2.0).backward()
    assert x.grad is not None
    return x.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_a_step_writes_where_the_last_one_did(dtype: torch.dtype) -> None:
    x = leaf(80, dtype=dtype)
    place, values = gradient_of(x).data_ptr(), gradient_of(x).clone()
    for _ in range(3):
        assert gradient_of(x).data_ptr() == place
        assert torch.equal(gradient_of(x), values)


def test_memory_is_not_reused_while_anything_refers_to_it() -> None:
    x = leaf()
    kept = gradient_of(x)
    row, seen = kept[3], []
    values = row.clone()
    del kept
    x.register_hook(lambda g: seen.append(g))
    first, second = gradient_of(x), gradient_of(leaf())
    assert len({t.untyped_storage().data_ptr() for t in (row, first, second)}) == 3
    assert torch.equal(row, values)
    before = seen[0].clone()
    gradient_of(x)
    assert torch.equal(seen[0], before)


def test_a_retained_graph_gives_the_same_gradient_again() -> None:
    x = leaf()
    loss = fastkd.kd_loss(x, torch.ones_like(x))
    (first,) = torch.autograd.grad(loss, x, retain_graph=True)
    (second,) = torch.autograd.grad(loss * 3, x)
    assert first.data_ptr() != second.data_ptr()
    torch.testing.assert_close(first * 3, second)


def test_a_gradient_can_be_changed_in_place() -> None:
    x = leaf()
    gradient_of(x).mul_(2.0)
    torch.nn.utils.clip_grad_norm_([x], 1e-3)
    assert x.grad is not None and float(x.grad.norm()) == pytest.approx(1e-3, rel=1e-3)
    with torch.no_grad():
        x -= x.grad
    fastkd.kd_loss(x, torch.ones_like(x)).backward()  # accumulates


def test_no_more_is_kept_than_was_in_use() -> None:
    one, two = block(10), block(30)
    del one, two
    assert kept_bytes() == 40 * MEGABYTE
    three = block(35)  # fits into neither, and both together with it would be more than was ever in use
    assert kept_bytes() <= 5 * MEGABYTE
    del three
    assert kept_bytes() <= 40 * MEGABYTE


def test_the_smallest_block_that_is_large_enough_is_taken() -> None:
    blocks = [block(size) for size in (30, 10, 20)]
    places = [x.data_ptr() for x in blocks]
    del blocks
    assert block(15).data_ptr() == places[2]


def test_a_limit() -> None:
    fastkd.keep_memory(16 * MEGABYTE)
    one, two = block(10), block(10)
    del one, two
    assert kept_bytes() == 10 * MEGABYTE
    fastkd.keep_memory(0)
    assert kept_bytes() == 0
    one = block(10)
    del one
    assert kept_bytes() == 0
    with pytest.raises(ValueError, match="number of bytes"):
        fastkd.keep_memory(-1)


def test_release() -> None:
    x = leaf()
    gradient_of(x)
    x.grad = None
    assert kept_bytes() > 0
    fastkd.release_memory()
    assert kept_bytes() == 0
    gradient_of(x)
    x.grad = None
    assert kept_bytes() > 0  # a release is no limit


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_system_may_take_kept_pages() -> None:
    x = block(32).zero_()
    place = x.data_ptr()
    del x
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ")[0] and ":" not in line.split(" ")[0]:
            begin, end = (int(part, 16) for part in line.split(" ")[0].split("-"))
            inside = begin <= place < end
        elif inside and line.startswith("LazyFree:"):
            found = int(line.split()[1]) * 1024
    assert found >= 30 * MEGABYTE


def test_small_tensors_and_modes_get_torchs_memory() -> None:
    x = memory.empty((2, 3), torch.float32, CPU)
    assert x.shape == (2, 3) and x.untyped_storage().resizable()
    with FakeTensorMode():
        assert type(memory.empty((4096, 4096), torch.float32, CPU)).__name__ == "FakeTensor"
    assert memory.empty((4096, 4096), torch.float32, torch.device("meta")).device.type == "meta"


def test_fresh_memory_is_poisoned_like_torchs() -> None:
    assert block(8).isnan().all()


def test_memory_that_cannot_be_had_does_not_count_as_used() -> None:
    kept = block(8)
    with pytest.raises(MemoryError):
        native_block(2**52)
    more = block(8)
    del kept, more
    assert kept_bytes() == 16 * MEGABYTE
    larger = block(24)  # beside which nothing may be kept, since no more was ever in use
    assert kept_bytes() == 0 and larger.numel() > 0


def test_memory_that_cannot_be_had() -> None:
    with pytest.raises(RuntimeError, match="allocate"):
        memory.empty((2**50,), torch.float32, CPU)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_process() -> None:
    """A child has its own copy of the kept blocks, and writes to none of its parent's."""
    x = leaf()
    values, kept = gradient_of(x).clone(), gradient_of(leaf())
    before = kept.clone()
    torch.set_num_threads(1)
    child = os.fork()
    if child == 0:
        with torch.no_grad():
            good = torch.equal(block(8).fill_(7.0), torch.full((2 * MEGABYTE,), 7.0))
        os._exit(0 if good else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert torch.equal(kept, before) and torch.equal(gradient_of(x), values)
