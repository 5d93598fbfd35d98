"""The registry of backends: which exist, which can run, and why one cannot."""

from __future__ import annotations

import difflib

import torch

from fastkd import _settings
from fastkd.backends.base import Backend
from fastkd.backends.native import NativeBackend
from fastkd.backends.reference import ReferenceBackend
from fastkd.backends.triton import TritonBackend
from fastkd.errors import BackendUnavailable

# In order of preference for calls that name none; the last one runs everywhere.
REGISTRY: dict[str, Backend] = {
    "native": NativeBackend(),
    "triton": TritonBackend(),
    "reference": ReferenceBackend(),
}


def check_name(name: str | None) -> None:
    """Raise ``ValueError`` for a name that no backend has."""
    if name is not None and name not in REGISTRY:
        near = difflib.get_close_matches(name, REGISTRY, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"unknown backend {name!r}: choose from {', '.join(REGISTRY)} (did you mean {near!r}?)"
        )


def choose(name: str | None, device: torch.device, *dtypes: torch.dtype) -> Backend:
    """The backend to run on ``device``: the named one, or the first that can.

    Raises:
        BackendUnavailable: the named backend cannot run there.
    """
    name = name or _settings.default_backend()
    check_name(name)
    if name is not None:
        backend = REGISTRY[name]
        for dtype in dtypes:
            reason = backend.missing(device, dtype)
            if reason is not None:
                raise BackendUnavailable(f"backend {name!r} cannot run {dtype} on {device.type}: {reason}")
        return backend
    for backend in REGISTRY.values():
        if backend.name == "triton" and device.type == "cpu":
            continue  # on a CPU Triton only runs interpreted, for tests
        if all(backend.missing(device, dtype) is None for dtype in dtypes):
            return backend
    return REGISTRY["reference"]


def available_backends() -> dict[str, str]:
    """Every backend on the device types ``cpu`` and ``cuda``: whether it can run there, and if not, why.

    Returns:
        ``"available"`` or the reason, for each name such as ``"native:cpu"``, in order of preference.
    """
    devices = [torch.device("cpu"), torch.device("cuda")]
    report = {}
    for backend in REGISTRY.values():
        for device in devices:
            reason = backend.missing(device)
            if device.type == "cuda" and reason is None and not torch.cuda.is_available():
                reason = "torch sees no GPU"
            report[f"{backend.name}:{device.type}"] = reason or "available"
    return report
