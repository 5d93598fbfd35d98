"""Test the host code of a GPU call on a machine without a GPU.

fastkd's operators run on fake tensors, which hold no data but claim a CUDA device. An operation that would
make the host wait for the GPU, or move data between host and device memory, raises ``Refused``.

Kernel launches are recorded instead of made. Autograd is bypassed, since it would need the device: the
losses' autograd functions are called directly, as autograd would call them.
"""

from __future__ import annotations

import ctypes
import functools
import inspect
import shutil
import subprocess
import tempfile
import types
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastkd.backends import memory, native, registry
from fastkd.losses import autograd, checks
from fastkd.ops import dense, linear

# Operators whose result, or its size, the host needs before it can continue.
WAITS = {
    *("_local_scalar_dense", "item", "equal", "is_nonzero", "allclose"),
    *("nonzero", "nonzero_numpy", "argwhere", "masked_select", "bincount", "histc", "repeat_interleave"),
    *("unique_dim", "_unique", "_unique2", "unique_consecutive", "unique_dim_consecutive"),
}
INSIDE = {
    "fastkd::dense_kd": dense._dense_kd,
    "fastkd::scale_rows": dense._scale_rows,
    "fastkd::linear_kd": linear._linear_kd,
}
FUNCTIONS = (autograd.Fused, autograd.Deferred)
# About what torch reports as the memory of an H100 with 80 GB.
H100_BYTES = 79 * 2**30


class Refused(AssertionError):
    """Raised for an operator that the GPU path must not call."""


@dataclass
class Seen:
    """A record of the launches, allocations and operators that ran.

    Attributes:
        launches: the device and the stream that each kernel launch received.
        made: bytes of every tensor that was allocated.
        peak: the most bytes of them that were alive at once.
        products: ``(rows, inner, columns)`` of every matrix product.
        moved: bytes that operators other than kernels and products read and wrote.
        small: the names of these operators, each of which launches a kernel of torch's.
        sums: bytes that products read and wrote beyond one write of a result in the dtype of their operands.
    """

    launches: list[tuple[int, int]] = field(default_factory=list)
    made: list[int] = field(default_factory=list)
    peak: int = 0
    products: list[tuple[int, int, int]] = field(default_factory=list)
    moved: int = 0
    small: list[str] = field(default_factory=list)
    sums: int = 0


class Watch(TorchDispatchMode):
    def __init__(self, device: torch.device, reads_allowed: int = 0) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Context]] = []
        self.device, self.reads_allowed = device, reads_allowed
        self.seen = Seen()
        self._live: dict[int, tuple[weakref.ref[Any], int]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "fastkd":
            return self._inside(func, args, kwargs)
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        name = func.overloadpacket.__name__
        if name == "_local_scalar_dense" and all(x.device.type == "cpu" for x in given):
            return 1  # the host reads its own memory, for which it waits for nothing
        if name in ("_local_scalar_dense", "item") and self.reads_allowed > 0:
            self.reads_allowed -= 1
            return 0
        self._refuse(func, name, given, args)
        if name == "addmm" and "dtype" in func._overloadname:
            out = self._wide_addmm(args, kwargs)  # fake tensors do not support it in every torch version
        else:
            out = func(*args, **kwargs)
        self._note(func, name, given, out)
        return out

    def _inside(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the operator's own code, and compare its outputs with those of its registered fake version."""
        promised = _forms(func(*args, **kwargs))
        with self:
            out = INSIDE[func._schema.name](*args, **kwargs)
        assert _forms(out) == promised, f"{func} returns {_forms(out)}, is traced as {promised}"
        return out

    def _refuse(self, func: Any, name: str, given: list[Tensor], args: tuple[Any, ...]) -> None:
        if name in WAITS:
            raise Refused(f"{func} makes the host wait")
        if name in ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"):
            indices = [x for x in args[1] if x is not None]
            if any(x.dtype in (torch.bool, torch.uint8) for x in indices):
                raise Refused(f"{func} by a mask makes the host wait for its size")
            if any(x.device.type == "cpu" for x in indices):
                raise Refused(f"{func} copies an index to the device")
        host = [x for x in given if x.device.type == "cpu"]
        if not host or len(host) == len(given):
            return
        # A 0-dimensional host tensor becomes a kernel argument; only `where` copies it to the device first.
        takes_numbers = (torch.Tag.pointwise in func.tags and name != "where") or name == "fill_"
        if not takes_numbers or any(x.dim() for x in host):
            raise Refused(f"{func} takes {[tuple(x.shape) for x in host]} from the host's memory")

    def _note(self, func: Any, name: str, given: list[Tensor], out: Any) -> None:
        results = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        # The host may compute with 0-dimensional tensors of its own.
        host = all(x.device.type == "cpu" for x in given)
        for x in results:
            if x.device != self.device and not (host and x.device.type == "cpu" and x.dim() == 0):
                raise Refused(f"{func} makes a tensor on {x.device}, not on {self.device}")
            self._see(x)
        if name in ("mm", "matmul", "addmm", "addmm_"):
            a, b = given[1:3] if "add" in name else given[:2]
            self.seen.products.append((a.shape[0], a.shape[1], b.shape[1]))
            for x in results:
                reads = given[0] is x and name != "mm"
                self.seen.sums += x.numel() * ((1 + reads) * x.element_size() - a.element_size())
        elif func.namespace == "aten" and "empty" not in name and not _is_view(func, given, results):
            # An output that the caller allocated is also among the given tensors; it is not read.
            read = given if name.endswith("_") else [x for x in given if not any(x is y for y in results)]
            self.seen.moved += sum(x.numel() * x.element_size() for x in (*read, *results))
            if any(x.device == self.device for x in results):
                self.seen.small.append(name)

    def _see(self, x: Tensor) -> None:
        storage = x.untyped_storage()
        key = id(storage)
        if key in self._live or x.device != self.device:
            return
        self.seen.made.append(storage.nbytes())
        self._live[key] = weakref.ref(storage, lambda _: self._live.pop(key, None)), storage.nbytes()
        self.seen.peak = max(self.seen.peak, sum(size for _, size in self._live.values()))

    def backward(self, *upstream: Tensor | None) -> list[Tensor | None]:
        """The gradients that the last loss's backward returns for these upstream gradients."""
        function, context = self.calls.pop()
        with torch.no_grad():
            return list(function.backward(context, *upstream))

    def given(self, *tensors: Tensor | None) -> None:
        """Register tensors that existed before the call, so that they do not count as allocations."""
        for x in tensors:
            if x is not None:
                storage = x.untyped_storage()
                key = id(storage)
                self._live[key] = weakref.ref(storage, lambda _, key=key: self._live.pop(key, None)), 0

    @staticmethod
    def _wide_addmm(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        into, a, b, dtype = args
        assert kwargs["out"] is into and into.dtype == dtype == torch.float32
        assert a.dtype == b.dtype and a.dtype in (torch.float16, torch.bfloat16)
        assert into.shape == (a.shape[0], b.shape[1]) and a.shape[1] == b.shape[0]
        return into


def _is_view(func: Any, given: list[Tensor], results: list[Tensor]) -> bool:
    """Whether an operator only describes its input anew. ``to`` and ``contiguous`` may do so, or copy."""
    return func.is_view and {id(x.untyped_storage()) for x in results} <= {
        id(x.untyped_storage()) for x in given
    }


def _forms(out: Any) -> list[tuple[Any, ...]]:
    return [(x.shape, x.dtype, x.device, x.stride()) for x in tree_leaves(out) if isinstance(x, Tensor)]


class Context:
    """A stand-in for the autograd context, which keeps tensors from the forward to the backward."""

    saved_tensors: tuple[Tensor | None, ...] = ()

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        self.saved_tensors = tensors

    def mark_dirty(self, *_: Tensor) -> None: ...

    def mark_non_differentiable(self, *_: Tensor) -> None: ...

    def set_materialize_grads(self, _: bool) -> None: ...


@functools.cache
def _guard_devices() -> None:
    """On a machine without a GPU, register the device guard that torch's indexing needs (gpu/guard.cpp)."""
    if torch.cuda.is_available():
        return
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler on PATH")
    home = Path(torch.__file__).parent
    with tempfile.TemporaryDirectory() as folder:
        library, source = Path(folder) / "guard.so", Path(__file__).parents[1] / "gpu" / "guard.cpp"
        command = [compiler, "-std=c++20", "-shared", "-fPIC", f"-I{home / 'include'}", str(source)]
        command += [f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"]
        command += [f"-L{home / 'lib'}", "-lc10", "-o", str(library)]
        subprocess.run(command, check=True, timeout=300)
        ctypes.CDLL(str(library))


class TritonKernel:
    """A stand-in for one of Triton's kernels, which binds the arguments of a launch and records it.

    Triton launches on the current stream of the current device, the last of ``current``.
    """

    def __init__(self, watch: Watch, kernel: Any, current: list[int]) -> None:
        self.watch, self.current = watch, current
        self.signature = inspect.signature(kernel.fn)

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*arguments: Any, **constants: Any) -> None:
            assert all(1 <= size < 2**31 for size in grid)
            bound = self.signature.bind(*arguments, **constants)
            for x in bound.arguments.values():
                assert not isinstance(x, Tensor) or x.device == self.watch.device
            self.watch.seen.launches.append((self.current[-1], 1000 + self.current[-1]))

        return launch


def _triton_patches(watch: Watch) -> Iterator[Any]:
    """The patches with which the Triton backend behaves as if the device existed."""
    try:
        from fastkd.backends.triton import host, launch, launch_small, launch_sparse
    except ImportError:
        return
    current = [0]

    @contextmanager
    def on(device: torch.device) -> Iterator[None]:
        assert device.index is not None
        current.append(device.index)
        yield
        current.pop()

    yield mock.patch.object(host, "on", on)
    yield mock.patch.object(host, "options_here", lambda shape: {})
    yield mock.patch.object(host, "INTERPRETED", False)
    for module in (launch, launch_small, launch_sparse):
        for name, kernel in vars(module).items():
            if name.endswith("_kernel"):
                yield mock.patch.object(module, name, TritonKernel(watch, kernel, current))


@contextmanager
def watched(
    device: str = "cuda:1",
    reads_allowed: int = 0,
    keeps_graph: bool = False,
    device_bytes: int = H100_BYTES,
) -> Iterator[Watch]:
    """Inside the block tensors are fake, and the backends with kernels behave as if ``device`` existed and
    had this much memory."""
    _guard_devices()
    on = torch.device(device)
    watch = Watch(on, reads_allowed)

    def launched(_: Any, index: int, stream: int, *more: Any) -> None:
        watch.seen.launches.append((index, stream))

    def current_stream(device: torch.device) -> Any:
        return types.SimpleNamespace(device_index=device.index, cuda_stream=1000 + device.index)

    def applied(function: Any) -> Any:
        def apply(*inputs: Any) -> Any:
            watch.calls.append((function, Context()))
            with torch.no_grad():
                return function.forward(watch.calls[-1][1], *inputs)

        return mock.patch.object(function, "apply", apply)

    module = types.SimpleNamespace(**{name: getattr(native._C, name) for name in dir(native._C)})
    module.built_with_cuda, module.cuda_missing = True, lambda index: None
    module.cuda_dense_rows = module.cuda_scale_rows = launched
    module.cuda_row_weights = module.cuda_totals = launched
    with ExitStack() as stack:
        for function in FUNCTIONS:
            stack.enter_context(applied(function))
        stack.enter_context(mock.patch.object(autograd.Overwrite, "apply", lambda logits: logits))
        # Without autograd the student's logits are a leaf, which `inplace` would refuse.
        stack.enter_context(mock.patch.object(checks, "overwritable", lambda x: None))
        stack.enter_context(mock.patch.object(native, "_C", module))
        stack.enter_context(mock.patch.object(native, "_address", lambda x: 0 if x is None else 4096))
        for patch in list(_triton_patches(watch)):
            stack.enter_context(patch)
        for user in (native, memory, registry):
            stack.enter_context(mock.patch.object(user, "nothing_traces", lambda *tensors: True))
        stack.enter_context(mock.patch.object(memory, "device_bytes", lambda _: device_bytes))
        stack.enter_context(mock.patch.object(torch.cuda, "current_stream", current_stream))
        stack.enter_context(mock.patch.object(autograd, "_keeps_graph", lambda: keeps_graph))
        stack.enter_context(FakeTensorMode())
        stack.enter_context(watch)
        yield watch
