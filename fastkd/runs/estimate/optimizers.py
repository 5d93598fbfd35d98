"""The memory that the optimizers of ``transformers`` need per parameter."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

# Bytes of state per trained parameter: 4 for each float32 moment, 1 for each 8-bit moment and a half for each
# 4-bit one. The scales of quantised moments are small and not counted.
_BYTES = {
    "sgd": 0.0,
    "adagrad": 4.0,
    "rmsprop": 4.0,
    "rmsprop_bnb": 4.0,
    "rmsprop_bnb_8bit": 1.0,
    "rmsprop_bnb_32bit": 4.0,
    "lion_32bit": 4.0,
    "lion_8bit": 1.0,
    "paged_lion_32bit": 4.0,
    "paged_lion_8bit": 1.0,
    "adamw_8bit": 2.0,
    "adamw_bnb_8bit": 2.0,
    "paged_adamw_8bit": 2.0,
    "adamw_torch_8bit": 2.0,
    "adamw_torch_4bit": 1.0,
    "ademamix": 12.0,
    "ademamix_8bit": 3.0,
    "paged_ademamix_32bit": 12.0,
    "paged_ademamix_8bit": 3.0,
    "lomo": 0.0,
}
_TWO_MOMENTS = 8.0


def optimizer_bytes(optim: str, optim_args: str | None, trained: Iterable[Tensor]) -> int:
    """Bytes of the state of ``optim``; an unknown optimizer counts as AdamW (two float32 moments)."""
    shapes = [tuple(p.shape) for p in trained]
    if optim == "adafactor":  # one row and one column of float32 for every matrix
        return sum(
            4 * (_numel(s[:-1]) + _numel((*s[:-2], s[-1])) if len(s) > 1 else _numel(s)) for s in shapes
        )
    per_parameter = _BYTES.get(optim, _TWO_MOMENTS)
    if optim == "sgd" and "momentum" in (optim_args or ""):
        per_parameter = 4.0
    return int(per_parameter * sum(map(_numel, shapes)))


def step_bytes(optim: str, device: str, trained: Iterable[Tensor]) -> int:
    """Scratch bytes of an optimizer step.

    An optimizer that updates all parameters together (``*_torch`` on a GPU) needs as much as all of them,
    one that updates them in turn needs twice the largest, and the fused AdamW needs nothing.
    """
    sizes = [p.numel() * p.element_size() for p in trained]
    if not sizes or optim == "adamw_torch_fused":
        return 0
    return sum(sizes) if device == "cuda" and optim.endswith("_torch") else 2 * max(sizes)


def _numel(shape: tuple[int, ...]) -> int:
    made = 1
    for size in shape:
        made *= size
    return made
