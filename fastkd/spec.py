"""The arithmetic of one row, as plain numbers that every backend understands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, get_type_hints

from torch import Tensor

# The columns of a row's metrics.
METRICS = ("kd", "ce", "student_entropy", "teacher_entropy", "agreement")


class LossSpec(NamedTuple):
    """``L = kd_weight * D(p, q) + ce_weight * CE + z_loss * logsumexp(s)**2`` for one token.

    ``p = softmax(t / teacher_temperature)`` and ``q = softmax(s / temperature)`` over the first
    ``vocab_size`` columns; CE and the z-loss are at temperature 1. If ``kd_weight`` is 0, the teacher is not
    read. ``kd_metric`` is the factor of ``D`` in the metrics.

    An op takes the fields of type float as one list, see :data:`SPEC_SCHEMA`.
    """

    divergence: str
    alpha: float
    beta: float
    temperature: float
    teacher_temperature: float
    kd_weight: float
    kd_metric: float
    ce_weight: float
    label_smoothing: float
    z_loss: float
    ignore_index: int
    vocab_size: int


def changed(spec: LossSpec, **fields: str | int | float) -> LossSpec:
    """``spec._replace(**fields)``, in a form that torch.compile can trace from torch 2.6 on."""
    before = dict(zip(LossSpec._fields, tuple(spec), strict=True))
    return LossSpec(**{**before, **fields})  # type: ignore[arg-type]


_TYPES = get_type_hints(LossSpec)
_FLOATS = [place for place, kind in enumerate(_TYPES.values()) if kind is float]
NUMBERS = slice(_FLOATS[0], _FLOATS[-1] + 1)
NAMES = [name for name, kind in _TYPES.items() if kind is not float]
# The part of an op's schema that carries a LossSpec. Where torch.compile traces a number that changes from
# step to step, `changing` (float64, on the CPU) replaces `numbers`: new values in a tensor need no new graph.
SPEC_SCHEMA = ", ".join(
    [
        *(f"{kind.__name__} {name}" for name, kind in _TYPES.items() if kind is not float),
        "float[] numbers, Tensor? changing",
    ]
)


def names_of(spec: LossSpec) -> tuple[str | int, ...]:
    """The fields that are not floats."""
    fields = tuple(spec)
    return (*fields[: NUMBERS.start], *fields[NUMBERS.stop :])  # type: ignore[arg-type]


def numbers_of(spec: LossSpec) -> tuple[float, ...]:
    """The fields that are floats."""
    return tuple(spec)[NUMBERS]  # type: ignore[return-value]


def spec_of(names: Sequence[str | int], numbers: Sequence[float], changing: Tensor | None) -> LossSpec:
    """The :class:`LossSpec` that was passed to an op as :data:`SPEC_SCHEMA`."""
    if changing is not None:
        numbers = tuple(memoryview(changing.numpy()))  # type: ignore[arg-type]
    before = NUMBERS.start
    return LossSpec(*names[:before], *numbers, *names[before:])  # type: ignore[arg-type]
