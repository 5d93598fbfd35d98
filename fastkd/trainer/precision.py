"""The precision in which a student is trained, and the dtype in which it is saved: that of the files it came
from, while it is trained in float32.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

# The attribute of a model that holds the dtype. A model that a caller loaded has none: it is saved as it is.
_ATTRIBUTE = "_fastkd_saved_dtype"


def half_precision(args: Any) -> torch.dtype | None:
    """The 16-bit dtype of mixed-precision training; None where the configuration has none."""
    return torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None


def autocast(args: Any, device: torch.device) -> Any:
    """The autocast context of training; one that does nothing if training uses no autocast."""
    dtype = half_precision(args)
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def save_as(model: Any, dtype: torch.dtype) -> None:
    """Save this model in ``dtype`` at the end of its training; its checkpoints keep the weights exactly."""
    setattr(model, _ATTRIBUTE, dtype)


def saved_dtype(model: Any) -> torch.dtype | None:
    """The dtype in which the model will be saved; None if it is the one that it has."""
    dtype = getattr(model, _ATTRIBUTE, None)
    return dtype if isinstance(dtype, torch.dtype) and dtype != model.dtype else None


def cast(model: Any, state: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The weights of a model in ``dtype``, apart from those that its class keeps in float32. Tensors that
    share memory, such as tied weights, still share it.
    """
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    kept = set(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    if dtype == torch.float16:
        kept |= set(getattr(model, "_keep_in_fp32_modules", None) or ())
    made: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name in parameters and tensor.is_floating_point() and kept.isdisjoint(name.split(".")):
            twin = next((other for other in made if state[other].is_set_to(tensor)), None)
            made[name] = tensor.to(dtype) if twin is None else made[twin]
        else:
            made[name] = tensor
    return made


@contextlib.contextmanager
def stated(config: Any, dtype: torch.dtype) -> Iterator[None]:
    """Makes a model's configuration state this dtype, which loaders follow."""
    before = config.dtype
    config.dtype = str(dtype).removeprefix("torch.")
    try:
        yield
    finally:
        config.dtype = before
