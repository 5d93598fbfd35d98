"""Where the suite runs: every backend, device and instruction set, as pytest parameters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch

from fastkd.backends.native import cpu_isas, forced_isa
from fastkd.backends.registry import REGISTRY


@dataclass(frozen=True)
class Target:
    backend: str
    device: str = "cpu"
    isa: str | None = None

    @contextmanager
    def active(self) -> Iterator[None]:
        reason = REGISTRY[self.backend].missing(torch.device(self.device))
        if self.device == "cuda" and not torch.cuda.is_available():
            reason = "no GPU"
        if reason is not None:
            pytest.fail(f"{self} was asked for but cannot run: {reason}")
        if self.isa is None:
            yield
        else:
            with forced_isa(self.isa):
                yield

    @property
    def options(self) -> dict[str, str]:
        return {"backend": self.backend}

    def runs(self, dtype: torch.dtype) -> bool:
        return REGISTRY[self.backend].missing(torch.device(self.device), dtype) is None


def _parameters() -> list[object]:
    cpu = [pytest.param(Target("reference"), id="reference")]
    # A missing module is a failure of every native case, not a silent absence of them.
    cpu += [pytest.param(Target("native", isa=isa), id=f"native-{isa}") for isa in cpu_isas() or ["unbuilt"]]
    cpu += [pytest.param(Target("triton"), id="triton", marks=pytest.mark.triton_interpret)]
    gpu = [
        pytest.param(Target(name, "cuda"), id=f"{name}-cuda", marks=pytest.mark.gpu)
        for name in ("reference", "native", "triton")
    ]
    return cpu + gpu


TARGETS = _parameters()
