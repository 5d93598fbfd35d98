"""The losses as modules, for code that builds a loss once and calls it at every step."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from fastkd.losses import kd_loss, linear_kd_loss
from fastkd.losses.options import Options
from fastkd.teachers import HiddenTeacher, SparseTeacher


def _check(function: Callable[..., Any], options: dict[str, Any]) -> None:
    """Raise for a keyword that ``function`` does not have, and for a value that every call would reject."""
    known = [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
            raise TypeError(f"{function.__name__} has no option {name!r} (did you mean {near!r}?)")
    Options(**{name: value for name, value in options.items() if name in Options._fields}).check()


class KDLoss(nn.Module):
    """:func:`fastkd.kd_loss` with its keyword arguments fixed at construction.

    Raises:
        TypeError: ``kd_loss`` has no such option. A wrong value raises the same error as in ``kd_loss``.
    """

    function: Callable[..., Any] = staticmethod(kd_loss)

    def __init__(self, **options: Any) -> None:
        super().__init__()
        _check(self.function, options)
        self.options = options

    def forward(
        self,
        student_logits: Tensor,
        teacher: Tensor | HiddenTeacher | SparseTeacher | None,
        labels: Tensor | None = None,
        **options: Any,
    ) -> Any:
        """``options``, such as ``num_items`` or ``token_weights``, override the module's for this call."""
        return kd_loss(student_logits, teacher, labels, **{**self.options, **options})

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())


class LinearKDLoss(KDLoss):
    """:func:`fastkd.linear_kd_loss` with its keyword arguments fixed at construction."""

    function = staticmethod(linear_kd_loss)

    def forward(  # type: ignore[override]
        self,
        student_hidden: Tensor,
        student_weight: Tensor,
        teacher: Tensor | HiddenTeacher | SparseTeacher | None,
        labels: Tensor | None = None,
        **options: Any,
    ) -> Any:
        return linear_kd_loss(student_hidden, student_weight, teacher, labels, **{**self.options, **options})
