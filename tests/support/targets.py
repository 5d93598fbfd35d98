"""Where the suite runs: every backend, device and instruction set, as pytest parameters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from fastkd.backends import native
from fastkd.backends.registry import REGISTRY


@dataclass(frozen=True)
class Target:
    backend: str
    device: str = "cpu"
    isa: str | None = None
    kernel: str | None = None  # native CUDA kernel to force; None leaves the choice to fastkd

    @contextmanager
    def active(self) -> Iterator[None]:
        reason = REGISTRY[self.backend].missing(torch.device(self.device))
        if self.device == "cuda" and not torch.cuda.is_available():
            reason = "no GPU"
        if reason is not None:
            pytest.fail(f"{self} was asked for but cannot run: {reason}")
        with ExitStack() as forced:
            if self.isa is not None:
                forced.enter_context(native.forced_isa(self.isa))
            if self.kernel is not None:
                forced.enter_context(native.forced_cuda_kernel(self.kernel))
            yield

    @property
    def interpreted(self) -> bool:
        """Whether Triton's interpreter runs the kernels, where a call takes a second: tests loop less."""
        return self.backend == "triton" and self.device == "cpu"

    @property
    def options(self) -> dict[str, str]:
        return {"backend": self.backend}

    def runs(self, dtype: torch.dtype) -> bool:
        return REGISTRY[self.backend].missing(torch.device(self.device), dtype) is None


def _cuda_kernels() -> list[str | None]:
    """None for fastkd's own choice of kernel; also "stream" where that choice may be the cluster kernel,
    which is from compute capability 9.0 on."""
    if torch.cuda.is_available() and torch.cuda.get_device_capability() < (9, 0):
        return [None]
    return [None, "stream"]


def _parameters() -> list[Any]:
    cpu = [pytest.param(Target("reference"), id="reference")]
    # If the native module is missing, every native case fails instead of being silently absent.
    cpu += [
        pytest.param(Target("native", isa=isa), id=f"native-{isa}")
        for isa in native.cpu_isas() or ["unbuilt"]
    ]
    cpu += [pytest.param(Target("triton"), id="triton", marks=pytest.mark.triton_interpret)]
    gpu = [(Target(name, "cuda"), f"{name}-cuda") for name in ("reference", "triton")]
    gpu += [
        (Target("native", "cuda", kernel=kernel), "-".join(filter(None, ("native-cuda", kernel))))
        for kernel in _cuda_kernels()
    ]
    return cpu + [pytest.param(target, id=name, marks=pytest.mark.gpu) for target, name in gpu]


TARGETS = _parameters()
# For tests that concern a GPU only. The CPU target shows that the test itself is right.
GPU_TARGETS = [
    *(parameter for parameter in TARGETS if parameter.values[0].device == "cuda"),
    pytest.param(Target("native"), id="native-cpu", marks=pytest.mark.slow),
]
