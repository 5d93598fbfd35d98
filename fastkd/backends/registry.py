"""The registry of backends: which exist, which can run, and why one cannot."""

from __future__ import annotations

import difflib

import torch
from torch import Tensor

from fastkd import _settings
from fastkd.backends.base import Backend, Weighing
from fastkd.backends.native import NativeBackend, nothing_traces
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


def _helper(
    name: str | None, device: torch.device, dtype: torch.dtype, *tensors: Tensor | None
) -> Backend | None:
    """The backend that may do a small step of a call in place of plain torch: the one that runs the call.

    None may if something traces the call, to which a kernel of our own would be invisible, or if the named
    backend cannot run, which the op says.
    """
    if not nothing_traces(*tensors):
        return None
    name = name or _settings.default_backend()
    if name is None:
        return choose(None, device, dtype)
    backend = REGISTRY.get(name)
    return None if backend is None or backend.missing(device, dtype) is not None else backend


def row_weights(
    name: str | None,
    tokens: int,
    device: torch.device,
    labels: Tensor | None,
    ignore_index: int,
    token_weights: Tensor | None,
    divisor: float | Tensor | None,
    dtype: torch.dtype,
) -> Tensor | None:
    """``(tokens,)`` weights of a reduction, in one step: see :func:`fastkd.losses.reduction.row_scale`.

    Args:
        name: the call's backend, or None.
        divisor: a number, a 0-d tensor, or None for the sum of the tokens' weights.

    Returns:
        None where plain torch has to compute them.
    """
    items = divisor if isinstance(divisor, Tensor) else None
    backend = _helper(name, device, dtype, labels, token_weights, items)
    if backend is None:
        return None
    if items is not None and items.device != device:
        if items.device.type != "cpu":
            return None
        divisor = float(items)  # the host reads its own memory
    if labels is not None:
        labels = labels.reshape(tokens).contiguous()
    if token_weights is not None:
        token_weights = token_weights.reshape(tokens).contiguous()
    return backend.row_weights(Weighing(tokens, device, dtype, labels, ignore_index, token_weights, divisor))


def totals(
    name: str | None, row_loss: Tensor | None, metrics: Tensor | None, loss_scale: Tensor
) -> tuple[Tensor | None, Tensor | None] | None:
    """The sum of a call's losses and the means of its metrics, in one step: see
    :func:`fastkd.losses.reduction.totals`.

    Args:
        name: the call's backend, or None.

    Returns:
        None where plain torch has to compute them.
    """
    # On a CPU an operator is no launch, and to ask costs more than torch's sum: it adds up the losses always,
    # so that metrics do not change the last bit of the sum.
    torch_sums = loss_scale.device.type == "cpu" and name != "triton"
    if torch_sums and metrics is None:
        return None
    backend = _helper(name, loss_scale.device, loss_scale.dtype, row_loss, metrics, loss_scale)
    if backend is None:
        return None
    found = backend.totals(None if torch_sums else row_loss, metrics, loss_scale)
    if found is None or not torch_sums or row_loss is None:
        return found
    return row_loss.sum(), found[1]


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
